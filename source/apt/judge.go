package apt

import (
	"path"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// Ignored tells of paths that the sandbox uses and the root does not get: locks, caches that
// apt makes again, what policy-rc.d was.
func Ignored(p string) bool {
	switch p {
	case "/var/lib/apt/daily_lock", "/var/lib/dpkg/lock", "/var/lib/dpkg/lock-frontend", "/var/lib/dpkg/triggers/Lock":
		return true
	}
	return within(p, "/var/lib/apt/lists", "/var/lib/apt/periodic", "/var/cache/apt") || path.Base(p) == ".liveupd"
}

// Shared tells of paths that others may change while the package manager works in the sandbox: logs
// and mail, which stay the machine's, and caches, which can be made again.
func Shared(p string) bool {
	return within(p, "/var/log", "/var/mail", "/var/spool", "/var/backups", "/var/cache")
}

// databases are what the package manager and its helpers keep in /var: no service has
// it open, and it belongs to what was unpacked.
var databases = []string{
	"/var/lib/dpkg", "/var/lib/apt", "/var/cache/debconf", "/var/lib/systemd/deb-systemd-helper-enabled", "/var/lib/systemd/deb-systemd-helper-masked",
	"/var/lib/systemd/deb-systemd-user-helper-enabled", "/var/lib/systemd/deb-systemd-user-helper-masked", "/var/lib/systemd/catalog", "/var/lib/ucf",
	"/var/lib/pam", "/var/lib/initramfs-tools", "/var/lib/shells.state", "/var/lib/python", "/var/lib/emacsen-common", "/var/lib/doc-base",
	"/var/lib/dictionaries-common", "/var/lib/ispell", "/var/lib/aspell", "/var/lib/xml-core", "/var/lib/sgml-base", "/var/lib/ghostscript", "/var/lib/texmf",
	"/var/lib/misc", "/var/cache/ldconfig", "/var/cache/man", "/var/cache/fontconfig", "/var/cache/dictionaries-common", "/var/lib/dkms", "/var/lib/dhcpcd",
}

// logs are those that the package manager writes itself.
var logs = []string{"/var/log/apt", "/var/log/dpkg.log", "/var/log/alternatives.log", "/var/log/unattended-upgrades", "/var/log/fontconfig.log"}

func within(p string, dirs ...string) bool {
	return slices.ContainsFunc(dirs, func(dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") })
}

// Judged are the paths of a Delta that were looked at again.
type Judged struct {
	Dropped []string // logs and mail of the machine: they stay as they are
	// Live are paths of data that a package changed and did not bring, by the folder
	// below /var that holds them.
	Live map[string][]string
}

// Judge sorts out what a Delta changes in /var. owned tells of the paths that packages
// list. What is new, owned, or a database of the package manager is kept.
func Judge(d *change.Delta, owned func(path string) bool) Judged {
	j := Judged{Live: map[string][]string{}}
	for i := range d.Entries {
		e := &d.Entries[i]
		if !strings.HasPrefix(e.Path, "/var/") || e.Old == nil || owned(e.Path) || within(e.Path, databases...) || within(e.Path, logs...) {
			continue
		}
		if within(e.Path, "/var/log", "/var/mail", "/var/spool", "/var/backups") && e.Op != change.Remove && e.Old.Type == change.Regular {
			j.Dropped = append(j.Dropped, e.Path)
			continue
		}
		if e.Op == change.Metadata {
			continue // owner, mode, times: no content of a copy takes the place of what is written meanwhile
		}
		folder := dataFolder(e.Path)
		j.Live[folder] = append(j.Live[folder], e.Path)
	}
	return j
}

// dataFolder is the folder that one program's data is in: /var/lib/mysql for all below.
func dataFolder(p string) string {
	parts := strings.SplitN(strings.TrimPrefix(p, "/"), "/", 4)
	if len(parts) < 4 {
		return path.Dir(p)
	}
	return "/" + strings.Join(parts[:3], "/")
}

// Drop takes paths out of a Delta.
func Drop(d *change.Delta, drop func(e *change.Entry) bool) {
	d.Entries = slices.DeleteFunc(d.Entries, func(e change.Entry) bool {
		if !drop(&e) {
			return false
		}
		if e.New != nil && e.New.Type == change.Regular && e.Op != change.Metadata {
			d.Bytes -= e.New.Size
		}
		return true
	})
}

// Bookkeeping tells of paths that change although no package did.
func Bookkeeping(p string) bool {
	return within(p, databases...) || within(p, logs...) || p == "/var/log" || Ignored(p) || p == "/etc/ld.so.cache"
}
