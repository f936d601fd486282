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
	// Manager gives the units in place of Units, when they are needed; nil where
	// Units are all that is to be known.
	Manager Manager
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
	// Text reads mappings as the text that kernels before 6.11 have alone.
	Text bool
}

// StaleResult is what runs code that its path no longer holds.
type StaleResult struct {
	Hits     []change.Hit             // Kind exec or mapped; Detail says what lies at the path now
	Examined int                      // processes that were looked at
	Own      []string                 // the caller's units
	Looked   map[string]change.Looked // by unit
	Warnings []string
	Gaps     []string // what could not be looked at, in words
	Unread   int      // processes that could not be looked at
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
	s := &staleScan{host: h, roots: h.roots(), retained: r.Retained, count: r.Count, text: r.Text, verdicts: map[staleKey]*staleVerdict{}}
	met, err := h.scan(ctx, func() visitor {
		return (&staleVisitor{staleScan: s, spaces: map[staleSpace]map[change.InodeKey]*staleVerdict{}}).visit
	})
	if err != nil {
		return nil, err
	}
	if err := h.settle(ctx, r.Manager, s.seen); err != nil {
		return nil, err
	}
	out := &StaleResult{
		Hits: tidy(s.hits()), Examined: met.examined, Own: h.own(r.Own), Gaps: met.gaps(), Unread: met.denied + met.hidden,
	}
	if r.Count {
		out.Looked = s.looked(met.units)
	}
	slices.Sort(s.warnings)
	out.Warnings = s.warnings
	return out, nil
}

type staleScan struct {
	*host
	retained map[change.InodeKey]string
	roots    map[change.InodeKey]bool // the host's
	count    bool
	text     bool

	mu       sync.Mutex
	verdicts map[staleKey]*staleVerdict
	seen     []sighting
	warnings []string
}

// its tells whether a sighting is the host's concern: what a container has in a
// root of its own is for the container to say.
func (s *staleScan) its(x *sighting) bool { return !x.who.Container || s.roots[x.root] }

func (s *staleScan) hits() []change.Hit {
	var out []change.Hit
	for i := range s.seen {
		x := &s.seen[i]
		if !s.its(x) {
			continue
		}
		for _, hit := range x.found {
			full := x.who
			full.Kind, full.Path, full.Detail = hit.Kind, hit.Path, hit.Detail
			out = append(out, full)
		}
	}
	return out
}

func (s *staleScan) looked(unread map[string]int) map[string]change.Looked {
	out := map[string]change.Looked{}
	for unit, n := range unread {
		out[unit] = change.Looked{Unread: n}
	}
	for i := range s.seen {
		x := &s.seen[i]
		if !s.its(x) {
			continue
		}
		for _, unit := range slices.Compact([]string{x.who.Unit, change.UnitKey(x.who.Unit, x.who.UserUnit)}) {
			c := out[unit]
			c.Processes, c.Files = c.Processes+1, c.Files+x.files
			out[unit] = c
		}
	}
	return out
}

// staleKey is one file as the processes of one root see it: what the verdict
// depends on, but for when a process began.
type staleKey struct {
	staleSpace
	dev, ino uint64 // as mappings have it; the executable's as stat has it
}

type staleSpace struct {
	mntNS uint64
	root  change.InodeKey
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

// allowance is for a copy that is made and started at once.
const allowance = 2e9

// counts tells whether the verdict may be against a process: that the file is
// stale, or was written since it was made.
func (v *staleVerdict) counts() bool {
	return v.path != "" && (v.detail != "" || v.birth > 0 && v.mtime > v.birth+allowance)
}

// staleVisitor is a processor's own part: the verdicts that it has met need no
// lock any more.
type staleVisitor struct {
	*staleScan
	spaces map[staleSpace]map[change.InodeKey]*staleVerdict
	buf    []byte
}

func (s *staleVisitor) visit(p *sys.Proc, exe *change.Node) error {
	var root change.Node
	if err := p.StatInto("root", &root); err != nil {
		return err
	}
	space := staleSpace{nsOf(p, "ns/mnt"), change.InodeKey{Dev: root.Dev, Ino: root.Ino}}
	known := s.spaces[space]
	if known == nil {
		known = map[change.InodeKey]*staleVerdict{}
		s.spaces[space] = known
	}
	// verdict asks the other processors where this one has not met the file.
	verdict := func(dev, ino uint64, use func() (link, name string)) *staleVerdict {
		v, reached := s.verdict(staleKey{space, dev, ino}, p, use)
		if reached {
			known[change.InodeKey{Dev: dev, Ino: ino}] = v
		}
		return v
	}
	var found []change.Hit
	var started int64 // real time, read when needed
	add := func(v *staleVerdict, kind string) {
		detail := v.detail
		if detail == "" {
			if started == 0 {
				if st, err := readStat(p); err == nil {
					started = s.clocks.Real - s.clocks.Monotonic + s.monotonic(st)
				}
			}
			if started == 0 || v.birth >= started || v.mtime <= started+allowance {
				return
			}
			detail = "written in place since the process began"
			s.warn(fmt.Sprintf("%s was written in place while programs ran it: they may run a mix of old and new", v.path))
		}
		if hit := (change.Hit{Kind: kind, Path: v.path, Detail: detail}); !slices.Contains(found, hit) {
			found = append(found, hit)
		}
	}
	v := known[change.InodeKey{Dev: exe.Dev, Ino: exe.Ino}]
	if v == nil {
		name, err := p.Readlink("exe")
		if err != nil {
			return err
		}
		v = verdict(exe.Dev, exe.Ino, func() (string, string) { return "exe", name })
	}
	if v.counts() {
		add(v, "exec")
	}
	exePath, files := v.path, map[change.InodeKey]bool(nil)
	if s.count {
		files = map[change.InodeKey]bool{}
	}
	err := p.Maps(sys.MapsOptions{Exec: true, Text: s.text}, func(m *sys.Mapping) bool {
		key := change.InodeKey{Dev: m.Dev, Ino: m.Ino}
		v := known[key]
		if v == nil {
			v = verdict(m.Dev, m.Ino, func() (string, string) { return m.File(), m.Path() })
		}
		if v.counts() && v.path != exePath {
			add(v, "mapped")
		}
		if files != nil {
			files[key] = true
		}
		return true
	})
	if err != nil {
		return err
	}
	if len(found) == 0 && !s.count {
		return nil
	}
	var x sighting
	if x, s.buf, err = s.describe(p, exe, s.buf); err != nil {
		return err
	}
	x.root, x.files, x.found = space.root, len(files), found
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = append(s.seen, x)
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
// and what it calls it. One that is not reached is good for this process alone.
func (s *staleScan) verdict(k staleKey, p *sys.Proc, use func() (link, name string)) (v *staleVerdict, reached bool) {
	s.mu.Lock()
	v = s.verdicts[k]
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
	if !v.reached {
		return &staleVerdict{}, false // the process has ended, and the next one may write to v
	}
	return v, true
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
		if linked && at.CtimeNS > s.began {
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

// maxCompared is more bytes than a program or a library has: what is larger is not
// read, and counts as another.
const maxCompared = 1 << 30

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
	// Both can be anybody's, and as large as a hole makes them.
	x, err := used.Stat()
	if err != nil || x.Size > maxCompared {
		return false
	}
	y, err := at.Stat()
	if err != nil || y.Size != x.Size {
		return false
	}
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
