package engine

import (
	"context"
	"io"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/nsmount"
	"github.com/liveupd/liveupd/rootfs"
)

// preview is a view of the root with an update that is not staged: of d what
// show tells of is written into memory, and goes with the view.
func (s *session) preview(ctx context.Context, d *change.Delta, content *sys.FD, show func(path string) bool) (*nsmount.View, error) {
	o := nsmount.ViewOptions{Root: s.root}
	after := rootfs.Overlay(rootfs.Volumes(s.rootVolumes()...), d, content)
	gone := "" // a folder that is removed with all that it holds
	for i := range d.Entries {
		e := &d.Entries[i]
		if !show(e.Path) || gone != "" && strings.HasPrefix(e.Path, gone) {
			continue
		}
		c := nsmount.ViewChange{Path: e.Path, Node: e.New}
		if e.New == nil {
			gone = e.Path + "/"
		} else if e.New.Type == change.Symlink && e.New.Target == "" {
			n, err := after.Lstat(e.Path)
			if err != nil {
				return nil, err
			}
			c.Node = n
		} else if e.New.Type == change.Regular && e.Op != change.Metadata {
			c.Open = func() (io.ReadCloser, error) {
				f, err := after.(rootfs.Opener).Open(e.Path)
				if err != nil {
					return nil, err
				}
				return contentReader{io.NewSectionReader(f, 0, f.Size()), f}, nil
			}
		}
		o.Changes = append(o.Changes, c)
	}
	return nsmount.OpenView(ctx, s.k, o)
}

type contentReader struct {
	io.Reader
	io.Closer
}
