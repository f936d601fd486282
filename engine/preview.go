package engine

import (
	"context"
	"fmt"
	"io"
	"os"
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
	var bytes int64
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
			bytes += e.New.Size
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
	if room := availableMemory(); room > 0 && bytes > room/4 {
		return nil, &sys.UnsupportedError{Feature: "a look at an update that is not staged", Needs: fmt.Sprintf("four times its %d MB of memory", bytes>>20)}
	}
	return nsmount.OpenView(ctx, s.k, o)
}

// availableMemory is what programs can have without swapping, in bytes; 0 unknown.
func availableMemory() int64 {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		var kb int64
		if n, _ := fmt.Sscanf(line, "MemAvailable: %d kB", &kb); n == 1 {
			return kb << 10
		}
	}
	return 0
}

type contentReader struct {
	io.Reader
	io.Closer
}
