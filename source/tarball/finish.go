package tarball

import (
	"context"
	"slices"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// finish does what must wait until all content is written: hard links, whose
// targets other goroutines made, and the folders' own times, modes and default
// ACLs, which would go by what is made in them. Then it tells what came of it.
func (u *unpacker) finish(ctx context.Context) error {
	if err := u.linkBelow(ctx, u.t.root); err != nil {
		return err
	}
	if err := u.settleBelow(ctx, u.t.root); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	u.report(u.t.root)
	slices.Sort(u.res.Removed)
	u.res.Removed = slices.Compact(u.res.Removed)
	slices.Sort(u.res.Opaque)
	u.res.Opaque = slices.Compact(u.res.Opaque)
	return nil
}

// linkBelow makes the hard links to all that lies below a folder.
func (u *unpacker) linkBelow(ctx context.Context, dir *entry) error {
	for _, e := range dir.sorted() {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if e.isDir() {
			if err := u.linkBelow(ctx, e); err != nil {
				return err
			}
		}
		if len(e.links) > 0 {
			if err := u.linkAll(e); err != nil {
				return err
			}
		}
	}
	return nil
}

func (u *unpacker) linkAll(e *entry) error {
	from, err := u.dirs.get(e.parent)
	if err != nil {
		return writeError(e.rel(), err)
	}
	defer from.release()
	first := e.path()
	for _, l := range e.links {
		if err := u.link(from.fd, e.name, l); err != nil {
			return writeError(l.rel(), err)
		}
		first = min(first, l.path())
	}
	var st change.Node
	if err := sys.LstatInto(from.fd, e.name, &st); err != nil {
		return writeError(e.rel(), err)
	}
	e.node.Link = first
	settle(e.node, &st)
	return nil
}

func (u *unpacker) link(from *sys.FD, name string, l *entry) error {
	to, err := u.dirs.get(l.parent)
	if err != nil {
		return err
	}
	defer to.release()
	return u.k.Link(from, name, to.fd, l.name)
}

// settleBelow gives folders their metadata, those inside first: a folder that is
// closed to its owner could not be entered any more.
func (u *unpacker) settleBelow(ctx context.Context, dir *entry) error {
	for _, e := range dir.children {
		if !e.isDir() || e.skipped {
			continue
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := u.settleBelow(ctx, e); err != nil {
			return err
		}
		parent, err := u.dirs.get(dir)
		if err == nil {
			err = u.setMeta(parent.fd, e.name, e.node)
			parent.release()
		}
		if err != nil {
			return writeError(e.rel(), err)
		}
	}
	return nil
}

// report calls Record for all that was made, a folder before what it holds.
func (u *unpacker) report(dir *entry) {
	for _, e := range dir.sorted() {
		if e.skipped {
			continue
		}
		node := e.node
		if e.target != nil {
			node = e.target.node
		}
		if e.implied {
			u.res.Implied = append(u.res.Implied, e.path())
		} else if u.res.Entries++; u.o.Record != nil {
			// Each name of an inode gets a node that its holder may change.
			own := *node
			u.o.Record(e.path(), &own)
		}
		if e.isDir() {
			u.report(e)
		}
	}
}
