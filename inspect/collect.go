// Package inspect looks at the running host: which processes use what an update
// takes away, which units they belong to, and which mount namespaces a swap
// would damage. It reads only; it never runs or trusts what a process offers.
//
// Collect works in these steps:
//
//  1. The files whose content goes are known by (st_dev, inode). For each file
//     system one of them is mapped, to learn what mappings call it.
//  2. Each process is held by its directory in /proc, so that nothing is read
//     of a successor with its number, and is looked at once: its executable,
//     and its file-backed mappings, executable ones only unless data goes that
//     programs map. A mapping matches by number; where numbers are not unique,
//     stat of its magic link decides. Never its path, never "(deleted)".
//  3. An inode that keeps other names is no hit for a process that came by one
//     of those: its mapping's path still leads to the inode.
//     What an earlier change took off the disk matches by the name that it had,
//     where a process of the host's own root still runs it: the change of that
//     path concerns the process although none of its inodes goes.
//  4. Processes get their unit by cgroup, below PID 1's own place in the tree.
//     A process that is older than its unit's present invocation is a leftover.
//  5. Each distinct mount namespace is read once. A mount upon, or a bind of,
//     an object whose name moves is damaged by the swap: the units within are
//     hit, whatever they map.
package inspect

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// Request is what Collect looks for.
type Request struct {
	Delta   *change.Delta
	Volumes []Volume // none: the paths are looked up from "/"
	// Units is the running manager's view; nil where systemd is not PID 1.
	Units map[string]*change.UnitState
	// Users are the managers of users, with their units.
	Users []*change.UserManager
	// Manager gives both in their place, when they are needed; nil where these are
	// all that is to be known.
	Manager Manager
	// Own are units that are known to belong to the caller.
	Own            []string
	SystemdVersion int
	// Text reads mappings as the text that kernels before 6.11 have alone.
	Text bool
}

// Collect makes the facts that a plan needs. A process that may not be looked
// at is a warning, not an error.
func Collect(ctx context.Context, r Request) (*change.Facts, error) {
	h, err := openHost(r.Units)
	if err != nil {
		return nil, err
	}
	defer h.close()
	h.users = userUnits(r.Users)
	facts := &change.Facts{Own: h.own(r.Own), SystemdVersion: r.SystemdVersion}
	if r.Delta.Empty() {
		err := h.settle(ctx, r.Manager, nil)
		facts.Units, facts.Running = h.units, len(h.units) > 0
		return facts, err
	}
	w, err := translate(ctx, goneFiles(r.Delta), openIn(r.Volumes))
	if err != nil {
		return nil, fmt.Errorf("cannot find out what mappings call the changed files: %w", err)
	}
	c := &collector{host: h, wanted: w, text: r.Text, spaces: map[uint64]*space{}, older: newOlder(h, r.Delta)}
	s, err := h.scan(ctx, func() visitor { return (&collectVisitor{collector: c}).visit })
	if err != nil {
		return nil, err
	}
	facts.Warnings = s.gaps()
	if err := h.settle(ctx, r.Manager, c.seen); err != nil {
		return nil, err
	}
	facts.Units, facts.Running = h.units, len(h.units) > 0
	c.gather()
	warnings, err := c.namespaces(r.Delta, r.Volumes)
	if err != nil {
		return nil, err
	}
	facts.Warnings = append(facts.Warnings, warnings...)
	facts.Hits = tidy(c.hits)
	return facts, nil
}

// collector gathers what all processors see.
type collector struct {
	*host
	wanted *wanted
	older  *older
	text   bool

	mu     sync.Mutex
	seen   []sighting
	hits   []change.Hit
	spaces map[uint64]*space
}

// space is a mount namespace other than the host's, and who lives in it.
type space struct {
	pids    []int        // to read its mounts from
	members []change.Hit // one for each unit
}

// collectVisitor is a processor's own part: what it remembers needs no lock.
type collectVisitor struct {
	*collector
	buf []byte
	// notOlder are objects of which olderPath has said that they are none.
	notOlder map[change.InodeKey]bool
}

func (c *collectVisitor) visit(p *sys.Proc, exe *change.Node) error {
	var found []change.Hit
	exeKey := change.InodeKey{Dev: exe.Dev, Ino: exe.Ino}
	if f := c.wanted.byStat[exeKey]; f != nil {
		name, err := p.Readlink("exe")
		if err != nil {
			return err
		}
		if path, ok := c.named(p, f, name); ok {
			found = append(found, change.Hit{Kind: "exec", Path: path})
		}
	} else if !c.notOlder[exeKey] {
		name := func() string { name, _ := p.Readlink("exe"); return name }
		if path := c.olderPath(p, exeKey, func() string { return "exe" }, name); path != "" {
			found = append(found, change.Hit{Kind: "exec", Path: path, Detail: alreadyOlder})
		}
	}
	if len(c.wanted.byMaps) > 0 {
		seen := map[*goneFile]bool{c.wanted.byStat[exeKey]: true}
		err := p.Maps(sys.MapsOptions{Exec: !c.wanted.data, Text: c.text}, func(m *sys.Mapping) bool {
			key := change.InodeKey{Dev: m.Dev, Ino: m.Ino}
			cand, ok := c.wanted.byMaps[key]
			if !ok && m.Exec {
				if c.notOlder[key] {
					return true
				}
				var path string
				hit := func(h change.Hit) bool { return h.Path == path }
				if path = c.olderPath(p, key, m.File, m.Path); path != "" && !slices.ContainsFunc(found, hit) {
					found = append(found, change.Hit{Kind: "mapped", Path: path, Detail: alreadyOlder})
				}
				return true
			}
			if !ok || seen[cand.file] || !m.Exec && !cand.file.data {
				return true
			}
			if cand.confirm && !c.confirm(p, m, cand.file) {
				return true
			}
			seen[cand.file] = true
			if path, ok := c.named(p, cand.file, m.Path()); ok {
				hit := change.Hit{Kind: "mapped", Path: path}
				if !m.Exec {
					hit.Detail = "mapped as data"
				}
				found = append(found, hit)
			}
			return true
		})
		if err != nil {
			return err
		}
	}
	ns := nsOf(p, "ns/mnt")
	foreign := ns != 0 && ns != c.mntNS && ns != c.ownNS
	if len(found) == 0 && !foreign {
		return nil
	}
	var s sighting
	var err error
	if s, c.buf, err = c.describe(p, exe, c.buf); err != nil {
		return err
	}
	s.found = found
	if foreign {
		s.mntNS = ns
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = append(c.seen, s)
	return nil
}

// olderPath is that of all processors; what is none is remembered here.
func (c *collectVisitor) olderPath(p *sys.Proc, key change.InodeKey, link, name func() string) string {
	at, none := c.collector.olderPath(p, key, link, name)
	if none {
		if c.notOlder == nil {
			c.notOlder = map[change.InodeKey]bool{}
		}
		c.notOlder[key] = true
	}
	return at
}

// gather makes hits of what was seen.
func (c *collector) gather() {
	for i := range c.seen {
		s := &c.seen[i]
		for _, hit := range s.found {
			full := s.who
			full.Kind, full.Path, full.Detail = hit.Kind, hit.Path, hit.Detail
			c.hits = append(c.hits, full)
		}
		if s.mntNS == 0 {
			continue
		}
		sp := c.spaces[s.mntNS]
		if sp == nil {
			sp = &space{}
			c.spaces[s.mntNS] = sp
		}
		sp.pids = append(sp.pids, s.who.PID)
		sp.members = append(sp.members, s.who)
	}
	c.seen = nil
}

// confirm settles whether a mapping is of the file, where its numbers do not.
func (c *collector) confirm(p *sys.Proc, m *sys.Mapping, f *goneFile) bool {
	var n change.Node
	err := p.StatInto(m.File(), &n)
	if sys.IsDenied(err) {
		// map_files needs CAP_CHECKPOINT_RESTORE in the first user namespace:
		// without it the path is the only further witness.
		return f.has(strings.TrimSuffix(m.Path(), " (deleted)"))
	}
	return err == nil && (change.InodeKey{Dev: n.Dev, Ino: n.Ino}) == f.key
}

// named chooses the changed path that a process came by. ok is false where it
// came by a name of the inode that stays.
func (c *collector) named(p *sys.Proc, f *goneFile, name string) (path string, ok bool) {
	if f.has(name) {
		return name, true
	}
	if f.survives() && strings.HasPrefix(name, "/") && leadsTo(p, name, f.key) {
		return "", false
	}
	return f.paths[0], true
}

// leadsTo tells whether a path in the process's own root is that inode.
func leadsTo(p *sys.Proc, name string, key change.InodeKey) bool {
	root, err := p.Open("root", sys.OpenPath|sys.OpenDir)
	if err != nil {
		return false
	}
	defer root.Close()
	n, err := statIn(root, name)
	return err == nil && (change.InodeKey{Dev: n.Dev, Ino: n.Ino}) == key
}

// statIn describes what a path leads to below root, symlinks resolved inside.
func statIn(root *sys.FD, name string) (*change.Node, error) {
	fd, err := sys.OpenAt(root, strings.TrimLeft(name, "/"), sys.OpenPath, sys.ResolveInRoot)
	if err != nil {
		return nil, err
	}
	defer fd.Close()
	return fd.Stat()
}

// tidy sorts hits and keeps one for each unit, path and kind; of processes
// that are in no service each is kept, since no job reaches them together.
func tidy(hits []change.Hit) []change.Hit {
	slices.SortFunc(hits, func(a, b change.Hit) int {
		return cmp.Or(
			cmp.Compare(a.Unit, b.Unit), cmp.Compare(a.UserUnit, b.UserUnit), cmp.Compare(a.Path, b.Path),
			cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.PID, b.PID),
		)
	})
	type class struct {
		unit, user, path, kind      string
		leftover, setuid, container bool
		pid                         int
	}
	seen := map[class]bool{}
	return slices.DeleteFunc(hits, func(h change.Hit) bool {
		k := class{h.Unit, h.UserUnit, h.Path, h.Kind, h.Leftover, h.Setuid, h.Container, 0}
		if !strings.HasSuffix(h.Unit, ".service") {
			k.pid = h.PID
		}
		dup := seen[k]
		seen[k] = true
		return dup
	})
}
