package writable

import (
	"fmt"
	"iter"
	"path"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// Base is the recorded base: what the last committed update shipped. A
// *catalog.Base satisfies it.
type Base interface {
	Get(path string) (*change.Node, bool)
	// Paths lists prefix and all paths below it.
	Paths(prefix string) iter.Seq[string]
}

// Options describes the update whose rules are wanted.
type Options struct {
	// Whole: the tree holds usr/ and an os-release.
	Whole bool
	// Owns are the directories that the manifest owns wholly; nil where there is no
	// manifest, or it does not say: then the kind of tree decides.
	Owns []string
	// Never are paths that the manifest leaves alone.
	Never []string
	// Base is the recorded base, nil where no update was committed before.
	Base Base
	// Kernel is the release of the running kernel (uname -r), whose modules
	// are never removed; "" where no system runs from the root.
	Kernel string
}

// Rules are the ownership rules for one update. Its methods may be called from
// many goroutines at once if those of the base may.
type Rules struct {
	whole   bool
	named   bool // the manifest says what it owns
	owns    []string
	never   []string
	base    Base
	modules string
}

// The one table of paths: who owns what.
var (
	// neverTrees belong to the machine with all that is below them: its
	// users' files, foreign mounts, the kernel's file systems, what a boot makes.
	neverTrees = []string{"/home", "/root", "/mnt", "/media", "/proc", "/sys", "/dev", "/run", "/tmp"}

	// neverFiles are what makes this machine itself and no other.
	neverFiles = map[string]bool{
		"/etc/machine-id": true, "/etc/fstab": true,
		"/etc/shadow": true, "/etc/shadow-": true, "/etc/gshadow": true, "/etc/gshadow-": true,
		"/var/lib/dbus/machine-id": true, "/var/lib/systemd/random-seed": true,
		"/var/lib/systemd/credential.secret": true,
		"/etc/liveupd/keys/revoked":          true, // an update that could replace it could bring a stolen key back
	}

	hostKeys = "/etc/ssh/ssh_host_"

	// neverNames are no update's at any depth: the store of each file system, and
	// what fsck found.
	neverNames = []string{".liveupd", "lost+found"}

	// localTrees hold software of the machine's own choice.
	localTrees = []string{"/opt", "/srv", "/usr/local"}

	addOnlyTrees = []string{"/var", "/boot", "/efi"}

	// mergedLinks are the top-level names that a merged-/usr system has as links into /usr.
	mergedLinks = []string{"/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libo32", "/libx32"}

	// loaderLinks are never removed: ld.so is found through /lib and /lib64,
	// and /bin/sh and /sbin/init by their old names.
	loaderLinks = []string{"/bin", "/sbin", "/lib", "/lib64"}

	// sharedFolders are in every system; a partial tree has them only as the way to what it lists.
	sharedFolders = map[string]bool{
		"/": true, "/usr": true, "/opt": true, "/srv": true,
		"/bin": true, "/sbin": true, "/lib": true, "/lib32": true, "/lib64": true, "/libo32": true, "/libx32": true,
		"/usr/bin": true, "/usr/sbin": true, "/usr/lib": true, "/usr/lib32": true, "/usr/lib64": true,
		"/usr/libexec": true, "/usr/share": true, "/usr/include": true, "/usr/games": true,
		"/usr/src": true, "/usr/local": true, "/usr/lib/systemd": true, "/usr/lib/systemd/system": true,
	}

	// identityFiles are in every root, and say who this machine is and who may use it.
	identityFiles = map[string]bool{
		"/etc/passwd": true, "/etc/passwd-": true, "/etc/group": true, "/etc/group-": true,
		"/etc/subuid": true, "/etc/subuid-": true, "/etc/subgid": true, "/etc/subgid-": true,
		"/etc/hostname": true, "/etc/hosts": true, "/etc/resolv.conf": true,
	}

	// notOwnable are too much for one update to own: others live there, too.
	notOwnable = []string{"/", "/etc", "/var", "/var/lib", "/boot", "/efi", "/opt", "/srv", "/usr/local"}
)

const (
	etc         = "/etc"
	usr         = "/usr"
	modulesTree = "/usr/lib/modules/"
)

// New checks what the manifest asks for and gives the rules. It refuses, by
// name, a path that no manifest can own.
func New(o Options) (*Rules, error) {
	r := &Rules{whole: o.Whole, named: o.Owns != nil, owns: o.Owns, never: o.Never, base: o.Base}
	if o.Kernel != "" {
		r.modules = modulesTree + o.Kernel
	}
	for _, p := range slices.Concat(o.Owns, o.Never) {
		if !strings.HasPrefix(p, "/") || path.Clean(p) != p || strings.ContainsRune(p, 0) {
			return nil, fmt.Errorf("cannot use the path %q of the manifest: it is not absolute and clean", p)
		}
	}
	for _, p := range o.Owns {
		if slices.Contains(notOwnable, p) {
			return nil, fmt.Errorf("cannot let an update own %s: others live there, too; name the folders below it", p)
		}
		if machineOnly(p) {
			return nil, fmt.Errorf("cannot let an update own %s: it is the machine's alone", p)
		}
		if below(p, mergedLinks) {
			return nil, fmt.Errorf("cannot let an update own %s: name it by its place, %s%s", p, usr, p)
		}
	}
	return r, nil
}

// in tells whether p is tree or lies below it.
func in(p, tree string) bool {
	return strings.HasPrefix(p, tree) && (len(p) == len(tree) || p[len(tree)] == '/')
}

// below tells whether p is one of trees or lies below one.
func below(p string, trees []string) bool {
	for _, tree := range trees {
		if in(p, tree) {
			return true
		}
	}
	return false
}

// machineOnly tells whether p can belong to no update at all.
func machineOnly(p string) bool {
	if below(p, neverTrees) || neverFiles[p] || strings.HasPrefix(p, hostKeys) {
		return true
	}
	for _, name := range neverNames {
		if i := strings.Index(p, "/"+name); i >= 0 && slices.Contains(strings.Split(p[i:], "/"), name) {
			return true
		}
	}
	return false
}

// localTree gives the one of localTrees that holds p, "" for none.
func localTree(p string) string {
	for _, tree := range localTrees {
		if in(p, tree) {
			return tree
		}
	}
	return ""
}

// owned tells whether the manifest owns p.
func (r *Rules) owned(p string) bool {
	local := localTree(p)
	return slices.ContainsFunc(r.owns, func(o string) bool {
		return in(p, o) && (local == "" || in(o, local))
	})
}

// leads tells whether p is a folder above one that the manifest owns.
func (r *Rules) leads(p string) bool {
	return slices.ContainsFunc(r.owns, func(o string) bool { return in(o, p) })
}

// Class tells who owns the path; see the package comment for the order.
func (r *Rules) Class(p string) change.Class {
	switch {
	case machineOnly(p), below(p, r.never):
		return change.ClassNever
	case r.modules != "" && in(p, r.modules):
		return change.ClassListed
	case r.owned(p):
		return change.ClassWhole
	case !r.whole && sharedFolders[p]:
		return change.ClassAddOnly
	case localTree(p) != "" && r.leads(p):
		return change.ClassAddOnly
	case localTree(p) != "":
		if r.whole {
			return change.ClassNever
		}
		return change.ClassListed
	case in(p, etc):
		return change.ClassThreeWay
	case below(p, addOnlyTrees):
		return change.ClassAddOnly
	case !r.whole:
		return change.ClassListed
	case in(p, usr), slices.Contains(mergedLinks, p):
		if r.named || slices.Contains(loaderLinks, p) {
			return change.ClassListed
		}
		return change.ClassWhole
	case below(p, mergedLinks):
		return change.ClassListed
	}
	return change.ClassAddOnly
}

// Recorded lists the paths of the recorded base that follow the rule of /etc, so that
// the ones which a whole tree no longer ships can be decided. A partial tree
// has none.
func (r *Rules) Recorded() iter.Seq[string] {
	return func(yield func(string) bool) {
		if r.base == nil || !r.whole {
			return
		}
		for p := range r.base.Paths(etc) {
			if r.Class(p) == change.ClassThreeWay && !yield(p) {
				return
			}
		}
	}
}
