package nsmount

import (
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/liveupd/liveupd/internal/sys"
)

// Picture is which mounts of the machine, in whatever namespace, have to do with
// what lies in the root: what stands upon something there, and what shows something
// of it elsewhere. An exchange of names takes both along with the old object, so
// whoever plans one has to know them all, and that none has come since.
type Picture struct {
	mounts map[pictured]standing
}

// pictured names a mount while it lasts.
type pictured struct {
	id  int
	dev uint64
}

// standing is where a mount has to do with the root.
type standing struct {
	upon string // the path in the root that it stands upon; "" for none
	of   string // the path in the root that it shows; "" for none
	at   string // its mount point, as its namespace has it
	in   string // its namespace, for a person
	here bool   // its namespace is ours or process 1's
}

// Arrival is a mount that has come since a picture.
type Arrival struct {
	Path  string // in the root: what it stands upon or shows
	Upon  bool   // it stands upon Path; else it shows it at Point
	Point string // as its namespace has it
	In    string // its namespace, for a person
	// Covers: it stands upon Path in our namespace or process 1's, and shows
	// something else there.
	Covers bool
}

// Picture looks at the mounts of every namespace.
func (r *Root) Picture() (*Picture, error) {
	all, err := namespaces()
	if err != nil {
		return nil, err
	}
	defer closeAll(all)
	ours := map[uint64]bool{}
	for _, name := range []string{ownNamespace, initNamespace} {
		var st syscall.Stat_t
		if syscall.Stat(name, &st) == nil {
			ours[st.Ino] = true
		}
	}
	p := &Picture{mounts: map[pictured]standing{}}
	for _, n := range all {
		mounts := n.seen
		if n.file != nil {
			if err := n.within(func(m []sys.Mount) error { mounts = m; return nil }); err != nil {
				return nil, err
			}
		}
		p.add(r, mounts, n.String(), ours[n.ino])
	}
	return p, nil
}

func (p *Picture) add(r *Root, mounts []sys.Mount, in string, here bool) {
	byID := make(map[int]*sys.Mount, len(mounts))
	for i := range mounts {
		byID[mounts[i].ID] = &mounts[i]
	}
	for i := range mounts {
		m := &mounts[i]
		st := standing{of: r.pathOf(m.Dev, strings.TrimSuffix(m.Root, "//deleted")), at: m.Point, in: in, here: here}
		if on := byID[m.Parent]; on != nil && on != m && m.Inside(on.Point) {
			st.upon = r.pathOf(on.Dev, path.Join(on.Root, relative(on.Point, m.Point)))
		}
		if st.upon != "" || st.of != "" {
			p.mounts[pictured{m.ID, m.Dev}] = st
		}
	}
}

// pathOf gives the path in the root of an object of a file system, by its path
// from the file system's own root; "" where it is none of the root's.
func (r *Root) pathOf(dev uint64, fsPath string) string {
	best, out := -1, ""
	for _, v := range r.vols {
		if v.mount.Dev != dev || v.mount.ID == 0 {
			continue
		}
		top := v.mount.Root
		if v.Mount == "/" {
			// --root DIR may lie below the mount point.
			top = path.Join(top, relative(v.mount.Point, r.path))
		}
		rest, ok := strings.CutPrefix(fsPath, strings.TrimSuffix(top, "/"))
		if !ok || rest != "" && rest[0] != '/' || len(top) <= best {
			continue
		}
		best, out = len(top), path.Join(v.Mount, rest)
	}
	return out
}

// Since lists the mounts of p that the earlier picture lacks, or has elsewhere
// where moved is false, and that have to do with a path of which concerns is
// true; by the paths.
func (p *Picture) Since(earlier *Picture, moved bool, concerns func(path string) bool) []Arrival {
	var out []Arrival
	for key, st := range p.mounts {
		if was, ok := earlier.mounts[key]; ok && (moved || was.upon == st.upon && was.of == st.of) {
			continue
		}
		if st.upon != "" && concerns(st.upon) {
			out = append(out, Arrival{Path: st.upon, Upon: true, Point: st.at, In: st.in, Covers: st.here && st.of != st.upon})
		} else if st.of != "" && concerns(st.of) {
			out = append(out, Arrival{Path: st.of, Point: st.at, In: st.in})
		}
	}
	slices.SortFunc(out, func(a, b Arrival) int { return strings.Compare(a.Path+a.In, b.Path+b.In) })
	return out
}
