package rootfs

import (
	"bytes"
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// dpkgInfo is where dpkg keeps each package's list of paths (dpkg(1), FILES).
const dpkgInfo = "/var/lib/dpkg/info"

// dpkgDiversions holds three lines for each path that dpkg-divert(1) moved: the
// path, where the other packages' file of that name lies, and whose it stays.
const dpkgDiversions = "/var/lib/dpkg/diversions"

// otherDatabases are those of package managers that this program does not read.
var otherDatabases = []struct{ path, name string }{
	{"/var/lib/rpm", "rpm"}, {"/usr/lib/sysimage/rpm", "rpm"}, {"/var/lib/pacman/local", "pacman"}, {"/lib/apk/db/installed", "apk"},
}

// Other names the package manager of a tree without dpkg, "" where there is
// none that is known: who owns a path there cannot be told.
func (db *PackageDB) Other() string {
	if _, err := db.t.Lstat(dpkgInfo); err == nil {
		return ""
	}
	for _, o := range otherDatabases {
		if _, err := db.t.Lstat(o.path); err == nil {
			return o.name
		}
	}
	return ""
}

// diverted reads the diversions: for the place that a file was moved to, the
// path that packages list, and for each diverted path the one package that
// keeps it (":" for none).
func (db *PackageDB) diverted() (from, keeper map[string]string) {
	from, keeper = map[string]string{}, map[string]string{}
	b, err := db.t.ReadFile(dpkgDiversions)
	if err != nil {
		return from, keeper
	}
	list := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	for i := 0; i+2 < len(list); i += 3 {
		from[list[i+1]], keeper[list[i]] = list[i], list[i+2]
	}
	return from, keeper
}

// ucfRegistry names the package of each configuration file that ucf(1)
// manages: those are in no package's list. Lines of a package and a path.
const ucfRegistry = "/var/lib/ucf/registry"

// PackageDB answers which packages own a path. Nothing is read before the
// first question.
type PackageDB struct{ t *tree }

// Packages is the package database of a tree; one without dpkg owns nothing.
func Packages(v View) *PackageDB { return &PackageDB{asTree(v)} }

// Owners gives, for each of paths that packages own, their names, sorted. It
// reads the whole database once (some 5 MB on a server), so ask for all paths
// at once. With an error comes what the rest of the database says.
func (db *PackageDB) Owners(paths ...string) (map[string][]string, error) {
	// A package may list a path by its name of before the /usr merge.
	asked := map[string]string{}
	for _, p := range paths {
		asked[p] = p
		if rest, ok := strings.CutPrefix(p, "/usr"); ok {
			top, _, _ := strings.Cut(strings.TrimPrefix(rest, "/"), "/")
			if real, err := db.t.Resolve("/" + top); err == nil && real == "/usr/"+top {
				asked[rest] = p
			}
		}
	}
	out := map[string][]string{}
	if len(asked) == 0 {
		return out, nil
	}
	names, err := db.t.ReadDir(dpkgInfo)
	if err != nil {
		var w warnings
		if w.absent(err, "", "") {
			return out, nil
		}
		return nil, fmt.Errorf("cannot read the package database: %w", err)
	}
	var broken error
	from, keeper := db.diverted()
	moved := map[string]string{} // a listed path to the asked one that it was moved to
	for p, want := range asked {
		if listed, ok := from[p]; ok {
			moved[listed] = want
		}
	}
	own := func(p string, pkg string) {
		if k, ok := keeper[p]; ok && k != pkg {
			if want, ok := moved[p]; ok && !slices.Contains(out[want], pkg) {
				out[want] = append(out[want], pkg)
			}
			return
		}
		if want, ok := asked[p]; ok && !slices.Contains(out[want], pkg) {
			out[want] = append(out[want], pkg)
		}
	}
	for _, name := range names {
		pkg, ok := strings.CutSuffix(name, ".list")
		if !ok {
			continue
		}
		pkg, _, _ = strings.Cut(pkg, ":") // libc6:amd64
		b, err := db.t.ReadFile(join(dpkgInfo, name))
		if err != nil {
			broken = cmp.Or(broken, fmt.Errorf("cannot read the package database: %w", err))
			continue
		}
		for len(b) > 0 {
			line, rest, _ := bytes.Cut(b, []byte("\n"))
			b = rest
			if _, ok := asked[string(line)]; ok || moved[string(line)] != "" {
				own(string(line), pkg)
			}
		}
	}
	if b, err := db.t.ReadFile(ucfRegistry); err == nil {
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) == 2 {
				own(f[1], f[0])
			}
		}
	}
	for _, pkgs := range out {
		slices.Sort(pkgs)
	}
	return out, broken
}

// foreignConfig are the parts of /etc that a package fills for another program
// to read, so that owning the file says nothing about the package's service.
// What a unit names itself (EnvironmentFile= in /etc/default) is a use already.
var foreignConfig = []string{
	"/etc/X11", "/etc/alternatives", "/etc/apparmor.d", "/etc/apt", "/etc/avahi/services", "/etc/bash_completion.d", "/etc/binfmt.d", "/etc/ca-certificates",
	"/etc/cron.d", "/etc/cron.daily", "/etc/cron.hourly", "/etc/cron.monthly", "/etc/cron.weekly", "/etc/cron.yearly",
	"/etc/dbus-1", "/etc/default", "/etc/depmod.d", "/etc/dhcp", "/etc/dpkg", "/etc/emacs", "/etc/fail2ban/filter.d", "/etc/fonts", "/etc/grub.d", "/etc/init.d", "/etc/init",
	"/etc/initramfs-tools", "/etc/insserv.conf.d", "/etc/kernel", "/etc/ld.so.conf.d", "/etc/logcheck", "/etc/logrotate.d", "/etc/modprobe.d", "/etc/modules-load.d",
	"/etc/network/if-down.d", "/etc/network/if-post-down.d", "/etc/network/if-pre-up.d", "/etc/network/if-up.d", "/etc/pam.d", "/etc/polkit-1", "/etc/profile.d",
	"/etc/rc0.d", "/etc/rc1.d", "/etc/rc2.d", "/etc/rc3.d", "/etc/rc4.d", "/etc/rc5.d", "/etc/rc6.d", "/etc/rcS.d", "/etc/resolvconf", "/etc/rsyslog.d", "/etc/security", "/etc/skel", "/etc/ssl/certs",
	"/etc/sudoers.d", "/etc/sysctl.d", "/etc/systemd/system", "/etc/systemd/user", "/etc/sysusers.d", "/etc/terminfo", "/etc/tmpfiles.d", "/etc/udev", "/etc/ufw",
	"/etc/update-motd.d", "/etc/vim", "/etc/xdg",
}

// ConfigReaders adds to the services of t a use of kind config for each of
// paths (below /etc) that the service's own package owns: the package that
// owns both a file and a unit is the one whose service reads it. Where a
// package has several services and the path names some of them
// (/etc/systemd/logind.conf), only those read it. Templates stand for their
// instances. The database is read only where some path may have a reader; where it cannot
// be read, wholly or in part, t's warnings say so: what else is known still counts.
func ConfigReaders(v View, t *change.Tree, paths []string) {
	var ask []string
	for _, p := range paths {
		if strings.HasPrefix(p, "/etc/") && !slices.ContainsFunc(foreignConfig, func(dir string) bool {
			return strings.HasPrefix(p, dir+"/")
		}) {
			ask = append(ask, p)
		}
	}
	if len(ask) == 0 {
		return
	}
	units := map[string][]*change.Unit{} // by fragment
	var fragments []string
	for name, u := range t.Units {
		if name != u.Name || !strings.HasSuffix(name, ".service") || u.Masked || u.Fragment == "" {
			continue
		}
		if units[u.Fragment] == nil {
			fragments = append(fragments, u.Fragment)
		}
		units[u.Fragment] = append(units[u.Fragment], u)
	}
	owners, err := Packages(v).Owners(slices.Concat(ask, fragments)...)
	if err != nil {
		t.Warnings = append(t.Warnings, fmt.Sprintf("%v: which services read what changes in /etc is known in part", err))
	}
	services := map[string][]*change.Unit{} // by package
	for _, f := range fragments {
		for _, pkg := range owners[f] {
			services[pkg] = append(services[pkg], units[f]...)
		}
	}
	slices.Sort(ask)
	for _, p := range slices.Compact(ask) {
		for _, pkg := range owners[p] {
			for _, u := range readers(services[pkg], p) {
				use := change.Use{Path: p, Kind: "config", Via: "package " + pkg}
				if !slices.ContainsFunc(u.Uses, func(o change.Use) bool { return o.Path == p && o.Kind == "config" }) {
					u.Uses = append(u.Uses, use)
				}
			}
		}
	}
}

// readers chooses among a package's services the ones that a configuration
// file is for.
func readers(units []*change.Unit, p string) []*change.Unit {
	if len(units) < 2 {
		return units
	}
	stem := strings.TrimSuffix(path.Base(p), path.Ext(p))
	var named []*change.Unit
	for _, u := range units {
		prefix, _, _, _ := nameParts(u.Name)
		parts := strings.FieldsFunc(prefix, func(r rune) bool { return r == '-' || r == '_' })
		if prefix == stem || slices.Contains(parts, stem) || strings.HasSuffix(prefix, "-"+stem) {
			named = append(named, u)
		}
	}
	if named != nil {
		units = named
	}
	slices.SortFunc(units, func(a, b *change.Unit) int { return cmp.Compare(a.Name, b.Name) })
	return units
}
