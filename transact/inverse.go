package transact

import (
	"bytes"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/journal"
	"github.com/liveupd/liveupd/internal/sys"
)

// Inverse is what Revert would change now, for a plan: the old objects come from
// content (this transaction's folder on the root's file system; the caller
// closes it) at Entry.From, those of other file systems from the live root
// (Entry.FromLive). Paths that others changed since are described as they are now.
func (t *Tx) Inverse() (d *change.Delta, content *sys.FD, err error) {
	return t.inverse(false)
}

// OldObjects is Inverse for who wants to know the old objects and not to take anything back:
// what has no folder any more to go back to is left out of it.
func (t *Tx) OldObjects() (d *change.Delta, content *sys.FD, err error) {
	return t.inverse(true)
}

func (t *Tx) inverse(lenient bool) (d *change.Delta, content *sys.FD, err error) {
	if t.journal == nil {
		return nil, nil, fmt.Errorf("cannot plan the rollback of transaction %s: it has no journal", t.ID())
	}
	if missing := t.missing(); len(missing) > 0 {
		return nil, nil, fmt.Errorf("cannot plan the rollback of transaction %s: %s is not mounted", t.ID(), strings.Join(missing, ", "))
	}
	iv := &inverter{m: t.mover(), d: &change.Delta{}, links: map[uint64][]*change.Node{}, first: map[uint64]string{}}
	defer iv.m.close()
	for op, err := range t.journal.Ops.Where(journal.Moves | journal.InPlace) {
		if err != nil {
			return nil, nil, err
		}
		if op.Kind == journal.DirTimes {
			continue
		}
		iv.m.dirs.trim()
		if err := iv.op(op); lenient && notHere(err) {
			continue
		} else if err != nil {
			return nil, nil, fmt.Errorf("cannot plan the rollback of %s: %w", op.Path, err)
		}
	}
	iv.group()
	slices.SortFunc(iv.d.Entries, func(a, b change.Entry) int { return strings.Compare(a.Path, b.Path) })
	content, err = sys.OpenAt(t.vols[0].dir, ".", sys.OpenRead|sys.OpenDir, resolve)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot plan the rollback of transaction %s: %w", t.ID(), err)
	}
	return iv.d, content, nil
}

type inverter struct {
	m *mover
	d *change.Delta
	// links are the old objects by inode, to find hard-link groups again.
	links map[uint64][]*change.Node
	first map[uint64]string
}

func (iv *inverter) op(op *journal.Op) error {
	s, err := iv.m.spot(op)
	if notHere(err) && iv.m.nothingLeft(op) {
		return nil
	}
	if err != nil {
		return err
	}
	live, err := iv.tree(s.live, s.liveName, op.Path, op.Kind != journal.Metadata, func(p string) (*journal.Object, error) {
		if p == op.Path {
			return op.New, nil
		}
		member, err := iv.m.members.find(p)
		if member == nil || err != nil {
			return nil, err
		}
		return member.New, nil
	})
	if err != nil {
		return err
	}
	if op.Kind == journal.Metadata {
		if now := live[op.Path]; now != nil {
			iv.metadata(op, now)
		}
		return nil
	}
	var kept map[string]*change.Node
	if op.Old != nil {
		kept, err = iv.tree(s.staged, s.stagedName, op.Path, true, func(p string) (*journal.Object, error) {
			if p == op.Path {
				return op.Old, nil
			}
			member, err := iv.m.members.find(p)
			if member == nil || err != nil {
				return nil, err
			}
			return member.Old, nil
		})
		if err != nil {
			return err
		}
	}
	for p, now := range live {
		if kept[p] == nil {
			iv.add(change.Entry{Path: p, Op: change.Remove, Old: now})
		}
	}
	for p, old := range kept {
		e := change.Entry{Path: p, Op: change.Add, Old: live[p], New: old}
		e.From = "/" + path.Join(op.Staged, strings.TrimPrefix(p, op.Path))
		if op.Volume != 0 {
			e.From = path.Join(iv.m.mounts[op.Volume], Dir, txName, iv.m.t.ID(), e.From)
			e.FromLive = true
		}
		if e.Old != nil {
			e.Op = change.Replace
			e.Aspects = aspects(e.Old, e.New)
		}
		if old.Type == change.Regular {
			iv.d.Bytes += old.Size
			if old.Nlink > 1 {
				iv.links[old.Ino] = append(iv.links[old.Ino], old)
				if first, ok := iv.first[old.Ino]; !ok || p < first {
					iv.first[old.Ino] = p
				}
			}
		}
		iv.add(e)
	}
	return nil
}

func (iv *inverter) add(e change.Entry) { iv.d.Entries = append(iv.d.Entries, e) }

// group names the hard-link groups of the old objects.
func (iv *inverter) group() {
	for ino, nodes := range iv.links {
		if len(nodes) > 1 {
			for _, n := range nodes {
				n.Link = iv.first[ino]
			}
		}
	}
}

// metadata is the inverse of a change in place.
func (iv *inverter) metadata(op *journal.Op, now *change.Node) {
	old := *now
	old.Mode, old.UID, old.GID, old.MtimeNS = op.Old.Mode, op.Old.UID, op.Old.GID, op.Old.Mtime
	old.Xattrs = maps.Clone(now.Xattrs)
	if old.Xattrs == nil {
		old.Xattrs = map[string][]byte{}
	}
	for key := range op.New.Xattrs {
		delete(old.Xattrs, key)
	}
	maps.Copy(old.Xattrs, op.Old.Xattrs)
	if len(old.Xattrs) == 0 {
		old.Xattrs = nil
	}
	if how := aspects(now, &old); how != 0 {
		iv.add(change.Entry{Path: op.Path, Op: change.Metadata, Old: now, New: &old, Aspects: how})
	}
}

// tree describes an object and, where deep, all below it, by path. A digest of the journal
// stands where the content is the journal's.
func (iv *inverter) tree(dir *sys.FD, name, top string, deep bool, known func(p string) (*journal.Object, error)) (map[string]*change.Node, error) {
	out := map[string]*change.Node{}
	describe := func(p string, dir *sys.FD, name string) error {
		n, err := sys.Lstat(dir, name)
		if err != nil {
			return err
		}
		if n.Xattrs, err = sys.Xattrs(dir, name); err != nil {
			return err
		}
		if n.Type == change.Symlink {
			if n.Target, err = sys.Readlink(dir, name); err != nil {
				return err
			}
		}
		want, err := known(p)
		if err != nil {
			return err
		}
		if want != nil && want.Type == n.Type && want.Size == n.Size && want.Mtime == n.MtimeNS {
			n.Digest = want.Digest
		} else if want != nil && want.Type == n.Type && n.IsDir() {
			n.MtimeNS = want.Mtime // a file system may have set it when the folder moved
		}
		out[p] = n
		return nil
	}
	err := describe(top, dir, name)
	if notHere(err) {
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	if !deep {
		return out, nil
	}
	return out, walk(dir, name, top, describe)
}

// aspects tells how two objects at one path differ.
func aspects(a, b *change.Node) change.Aspect {
	var out change.Aspect
	if a.Type != b.Type {
		out |= change.AspectType
	} else if a.Size != b.Size || a.Target != b.Target || a.Rdev != b.Rdev || a.Digest != b.Digest {
		out |= change.AspectContent
	}
	if a.Mode != b.Mode {
		out |= change.AspectMode
	}
	if a.UID != b.UID || a.GID != b.GID {
		out |= change.AspectOwner
	}
	if a.MtimeNS != b.MtimeNS && a.Type != change.Directory {
		out |= change.AspectMtime
	}
	keys := maps.Clone(a.Xattrs)
	if keys == nil {
		keys = map[string][]byte{}
	}
	maps.Copy(keys, b.Xattrs)
	for key := range keys {
		av, aok := a.Xattrs[key]
		bv, bok := b.Xattrs[key]
		if aok == bok && bytes.Equal(av, bv) {
			continue
		}
		switch key {
		case "security.capability":
			out |= change.AspectCapability
		case "system.posix_acl_access", "system.posix_acl_default":
			out |= change.AspectACL
		default:
			out |= change.AspectXattr
		}
	}
	return out
}
