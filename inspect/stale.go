package inspect

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/elfcode"
	"github.com/liveupd/liveupd/internal/sys"
)

// StaleRequest is what Stale starts from.
type StaleRequest struct {
	Units map[string]*change.UnitState
	// Retained are the old copies that the store keeps, by what stat calls
	// them, with the path each was taken from.
	Retained map[change.InodeKey]string
	// Users are the managers of users, with their units.
	Users []*change.UserManager
	// Own are units that are known to belong to the caller.
	Own []string
	// Count asks for StaleResult.Looked, at the price of a look at each
	// process's control group.
	Count bool
}

// StaleResult is what runs code that its path no longer holds.
type StaleResult struct {
	Hits     []change.Hit             // Kind exec or mapped; Detail says what lies at the path now
	Examined int                      // processes that were looked at
	Own      []string                 // the caller's units
	Looked   map[string]change.Looked // by unit
	Warnings []string
}

// Stale compares each process's executable, and the executable mappings of
// files, with what their paths hold now in that process's own root:
//
//  1. The object itself: fresh. It was written in place after the process
//     began and existed before: stale, since a mapping follows what is written.
//     It was renamed since the boot, and what lies under its own name (DT_SONAME)
//     beside it is another: stale.
//  2. Another object of the same bytes, or the same program under the same build
//     ID (package elfcode): fresh.
//  3. Another object: stale.
//  4. Nothing: stale where the file is an ELF object of a directory of programs
//     or libraries; elsewhere it is generated code that never had a lasting name.
//
// Memory without a lasting file (memfd, shared memory, what lies in /tmp, /dev,
// /run or /proc) is passed over. The name of an old copy that a transaction
// keeps is its original path.
func Stale(ctx context.Context, r StaleRequest) (*StaleResult, error) {
	h, err := openHost(r.Units)
	if err != nil {
		return nil, err
	}
	defer h.close()
	h.users = userUnits(r.Users)
	s := &staleScan{host: h, roots: h.roots(), retained: r.Retained, verdicts: map[staleKey]*staleVerdict{}}
	if r.Count {
		s.looked = map[string]change.Looked{}
	}
	met, err := h.scan(ctx, s.visit)
	if err != nil {
		return nil, err
	}
	slices.Sort(s.warnings)
	return &StaleResult{
		Hits: tidy(s.hits), Examined: met.examined, Own: h.own(r.Own), Looked: s.looked,
		Warnings: append(met.warnings(), s.warnings...),
	}, nil
}

type staleScan struct {
	*host
	retained map[change.InodeKey]string
	roots    map[change.InodeKey]bool // the host's

	mu       sync.Mutex
	verdicts map[staleKey]*staleVerdict
	hits     []change.Hit
	warnings []string
	looked   map[string]change.Looked // nil where nobody counts
}

// staleKey is one file as the processes of one root see it: what the verdict
// depends on, but for when a process began.
type staleKey struct {
	mntNS    uint64
	root     change.InodeKey
	dev, ino uint64 // as mappings have it; the executable's as stat has it
}

// staleVerdict is reached by the first process that is asked about the file
// and does not end meanwhile.
type staleVerdict struct {
	mu      sync.Mutex
	reached bool
	path    string // "" for a file that is passed over
	detail  string // "" fresh
	// What case 1 needs, for the same object at the path.
	mtime, birth int64
}

func (s *staleScan) visit(p *sys.Proc, exe *change.Node) error {
	var root change.Node
	if err := p.StatInto("root", &root); err != nil {
		return err
	}
	ns := nsOf(p, "ns/mnt")
	var found []change.Hit
	var started int64 // real time, read when needed
	seen := map[[2]uint64]bool{}
	add := func(v *staleVerdict, kind string) {
		if v.path == "" {
			return
		}
		detail := v.detail
		if detail == "" && v.birth > 0 {
			if started == 0 {
				if st, err := readStat(p); err == nil {
					started = s.clocks.Real - s.clocks.Boot + int64(st.startTicks)*(1e9/sys.TicksPerSecond)
				}
			}
			const allowance = 2e9 // a copy that is made and started at once
			if started > 0 && v.birth < started && v.mtime > started+allowance {
				detail = "written in place since the process began"
				s.warn(fmt.Sprintf("%s was written in place while programs ran it: they may run a mix of old and new", v.path))
			}
		}
		if detail != "" {
			found = append(found, change.Hit{Kind: kind, Path: v.path, Detail: detail})
		}
	}
	rootKey := change.InodeKey{Dev: root.Dev, Ino: root.Ino}
	exeName, err := p.Readlink("exe")
	if err != nil {
		return err
	}
	v := s.verdict(staleKey{ns, rootKey, exe.Dev, exe.Ino}, p, func() (string, string) { return "exe", exeName })
	exePath := v.path
	add(v, "exec")
	err = p.Maps(sys.MapsOptions{Exec: true}, func(m sys.Mapping, name func() string) bool {
		if id := [2]uint64{m.Dev, m.Ino}; !seen[id] {
			seen[id] = true
			v := s.verdict(staleKey{ns, rootKey, m.Dev, m.Ino}, p, func() (string, string) { return m.File(), name() })
			if v.path != exePath {
				add(v, "mapped")
			}
		}
		return true
	})
	if err != nil {
		return err
	}
	if len(found) == 0 && s.looked == nil {
		return nil
	}
	who, err := s.describe(p, exe)
	if err != nil {
		return err
	}
	if who.Container && !s.roots[rootKey] {
		return nil // what a container has in a root of its own is for the container to say
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.looked != nil {
		for _, unit := range slices.Compact([]string{who.Unit, change.UnitKey(who.Unit, who.UserUnit)}) {
			c := s.looked[unit]
			s.looked[unit] = change.Looked{Processes: c.Processes + 1, Files: c.Files + len(seen)}
		}
	}
	for _, hit := range found {
		full := who
		full.Kind, full.Path, full.Detail = hit.Kind, hit.Path, hit.Detail
		s.hits = append(s.hits, full)
	}
	return nil
}

func (s *staleScan) warn(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Contains(s.warnings, text) {
		s.warnings = append(s.warnings, text)
	}
}

// verdict judges a file once. use tells by which magic link a process uses it
// and what it calls it.
func (s *staleScan) verdict(k staleKey, p *sys.Proc, use func() (link, name string)) *staleVerdict {
	s.mu.Lock()
	v := s.verdicts[k]
	if v == nil {
		v = &staleVerdict{}
		s.verdicts[k] = v
	}
	s.mu.Unlock()
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.reached {
		link, name := use()
		v.reached = s.judge(v, k, p, link, name)
	}
	return v
}

// judge reaches a verdict; false where the process has ended before.
func (s *staleScan) judge(v *staleVerdict, k staleKey, p *sys.Proc, link, mapped string) bool {
	if passedOver(mapped) {
		return true
	}
	var used change.Node
	err := p.StatInto(link, &used)
	linked := err == nil
	switch {
	case linked && used.Type != change.Regular:
		return true
	case sys.IsGone(err):
		return false
	case err != nil:
		// map_files needs CAP_CHECKPOINT_RESTORE in the first user namespace:
		// without it the mapping's own numbers have to do.
		used.Dev, used.Ino, used.Nlink = k.dev, k.ino, 1
	}
	key := change.InodeKey{Dev: used.Dev, Ino: used.Ino}
	name, wasDeleted := strings.CutSuffix(mapped, " (deleted)")
	original, kept := s.retained[key]
	if !kept {
		original, kept = originalPath(name)
	}
	if kept {
		name, mapped = original, original // that a copy lies where it was put means nothing
	}
	if passedOver(name) {
		return true
	}
	root, at, found, err := s.find(p, k, key, name, mapped)
	if err != nil {
		return !sys.IsGone(err)
	}
	defer root.Close()
	switch {
	case at == nil:
		// Where its name was not taken away it is merely not visible:
		// something is mounted over it, or its mount has gone.
		if (wasDeleted || kept) && programDirectory(name) && isELF(p, link) {
			v.path, v.detail = name, "removed"
		}
	case at.Dev == key.Dev && at.Ino == key.Ino:
		v.path, v.mtime = name, at.MtimeNS
		if linked {
			v.birth = p.Birth(link)
		}
		// Giving a file another name changes its inode.
		if linked && at.CtimeNS > s.clocks.Real-s.clocks.Boot {
			if other := s.setAside(root, name, key, p, link); other != "" {
				v.path, v.detail = other, "replaced; the old one is "+name+" now"
			}
		}
	case at.Type != change.Regular:
		v.path, v.detail = name, "replaced by a "+at.Type.String()
	case linked && at.Size == used.Size && sameContent(root, found, p, link):
	case linked && sameProgram(root, found, p, link):
	default:
		v.path, v.detail = name, "replaced"
	}
	return true
}

// find looks what a name leads to: in the process's own root; by the name that
// really ends in " (deleted)"; from the host's root for a process in a chroot,
// whose mappings are named from outside. An object that is the very one that
// is used comes before others. The root that it was found in is returned open.
func (s *staleScan) find(p *sys.Proc, k staleKey, key change.InodeKey, name, mapped string) (*sys.FD, *change.Node, string, error) {
	root, err := p.Open("root", sys.OpenPath|sys.OpenDir)
	if err != nil {
		return nil, nil, "", err
	}
	var first *change.Node
	for _, look := range []string{name, mapped} {
		n, err := statIn(root, look)
		if err != nil {
			continue
		}
		if n.Dev == key.Dev && n.Ino == key.Ino {
			return root, n, look, nil
		}
		if first == nil && look == name {
			first = n
		}
	}
	if k.mntNS == s.mntNS {
		top := "/proc/1/root/"
		if s.ownNS == s.mntNS {
			top = "/"
		}
		host, err := sys.OpenRoot(top)
		if err == nil {
			n, err := statIn(host, name)
			if err == nil && (n.Dev == key.Dev && n.Ino == key.Ino || first == nil) {
				root.Close()
				return host, n, name, nil
			}
			host.Close()
		}
	}
	return root, first, name, nil
}

// passedOver tells whether a mapping's name is of memory that has no lasting
// file, or of a place where only generated code is mapped from.
func passedOver(name string) bool {
	if !strings.HasPrefix(name, "/") {
		return true // [vdso], anon_inode:..., (unreachable)
	}
	for _, prefix := range []string{
		"/memfd:", "/SYSV", "/dev/", "/proc/", "/sys/", "/run/", "/tmp/", "/var/tmp/", "/[",
		"/anon_hugepage", "/i915", "/drm ", "/dmabuf:",
	} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// originalPath undoes the name that a transaction gives to an old copy,
// MOUNT/.liveupd/tx/ID/DIRECTORY/PATH, for one that is no longer kept.
func originalPath(name string) (string, bool) {
	const mark = "/.liveupd/tx/"
	mount, rest, ok := strings.Cut(name, mark)
	f := strings.SplitN(rest, "/", 3)
	if !ok || len(f) < 3 || f[2] == "" {
		return "", false
	}
	return mount + "/" + f[2], true
}

// programDirectory tells whether programs and libraries live there.
func programDirectory(name string) bool {
	for _, dir := range []string{"/usr", "/bin", "/sbin", "/opt", "/srv", "/snap", "/nix", "/gnu"} {
		if under(name, dir) {
			return true
		}
	}
	return strings.HasPrefix(name, "/lib") // /lib, /lib64, /lib32
}

// isELF looks at the first bytes of the file that a process uses, by its magic
// link, without running or trusting it.
func isELF(p *sys.Proc, link string) bool {
	f, err := p.Open(link, sys.OpenRead)
	if err != nil {
		return false
	}
	defer f.Close()
	magic := make([]byte, 4)
	n, err := sys.ReadAt(f, magic, 0)
	return err == nil && n == len(magic) && bytes.Equal(magic, []byte("\x7fELF"))
}

// sameContent compares the file at a path with the one that a process uses.
func sameContent(root *sys.FD, name string, p *sys.Proc, link string) bool {
	used, err := p.Open(link, sys.OpenRead|syscall.O_NONBLOCK)
	if err != nil {
		return false
	}
	defer used.Close()
	at, err := sys.OpenAt(root, strings.TrimLeft(name, "/"), sys.OpenRead|syscall.O_NONBLOCK, sys.ResolveInRoot)
	if err != nil {
		return false
	}
	defer at.Close()
	a, err := digest(used)
	if err != nil {
		return false
	}
	b, err := digest(at)
	return err == nil && a == b
}

// sameProgram compares them as programs: one may be stripped or signed.
func sameProgram(root *sys.FD, name string, p *sys.Proc, link string) bool {
	used, err := p.Open(link, sys.OpenRead|syscall.O_NONBLOCK)
	if err != nil {
		return false
	}
	defer used.Close()
	at, err := sys.OpenAt(root, strings.TrimLeft(name, "/"), sys.OpenRead|syscall.O_NONBLOCK, sys.ResolveInRoot)
	if err != nil {
		return false
	}
	defer at.Close()
	return elfcode.Same(used, at)
}

func digest(f *sys.FD) (change.Digest, error) {
	sum := sha256.New()
	buf := make([]byte, 256<<10)
	for offset := int64(0); ; {
		n, err := sys.ReadAt(f, buf, offset)
		if err != nil {
			return change.Digest{}, err
		}
		sum.Write(buf[:n])
		if offset += int64(n); n < len(buf) {
			return change.Digest(sum.Sum(nil)), nil
		}
	}
}
