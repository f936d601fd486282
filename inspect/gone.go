package inspect

import (
	"context"
	"errors"
	"path"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// goneFile is a regular file whose content its names will no longer lead to.
type goneFile struct {
	key   change.InodeKey
	paths []string // the names that change
	nlink uint32
	size  int64
	data  bool // programs map it although it holds no code
}

// survives tells whether the inode keeps names that do not change.
func (f *goneFile) survives() bool { return int(f.nlink) > len(f.paths) }

func (f *goneFile) has(name string) bool { return slices.Contains(f.paths, name) }

// goneFiles gathers the files by what stat calls them.
func goneFiles(d *change.Delta) map[change.InodeKey]*goneFile {
	out := map[change.InodeKey]*goneFile{}
	for i := range d.Entries {
		e := &d.Entries[i]
		if !goes(e) || e.FromLive || e.Old.Type != change.Regular || e.Old.Ino == 0 {
			continue
		}
		if e.Op == change.Replace && e.Aspects != 0 && e.Aspects&(change.AspectContent|change.AspectType) == 0 {
			continue // the bytes stay
		}
		key := change.InodeKey{Dev: e.Old.Dev, Ino: e.Old.Ino}
		f := out[key]
		if f == nil {
			f = &goneFile{key: key, nlink: e.Old.Nlink, size: e.Old.Size}
			out[key] = f
		}
		f.paths = append(f.paths, e.Path)
		f.data = f.data || isData(e.Path)
	}
	return out
}

// goes tells whether an entry takes a name away from what it leads to now.
func goes(e *change.Entry) bool {
	return (e.Op == change.Replace || e.Op == change.Remove) && e.Old != nil
}

// isData knows the kinds of files that long-running programs map without code
// in them and that are part of the program: archives of classes, data of ICU
// and of Electron. Locale archives, time zones, fonts and caches are not: what
// reads them takes the old copy until its next start without harm.
func isData(p string) bool {
	switch path.Ext(p) {
	case ".jar", ".jmod", ".jsa", ".war", ".phar", ".pak", ".asar", ".wasm":
		return true
	case ".dat":
		return strings.HasPrefix(path.Base(p), "icudt") || strings.Contains(p, "/icu/")
	}
	return path.Base(p) == "modules" && strings.HasSuffix(path.Dir(p), "/lib") && strings.Contains(p, "/jvm/")
}

// wanted is the set of files by what mappings call them.
type wanted struct {
	byStat map[change.InodeKey]*goneFile
	byMaps map[change.InodeKey]candidate
	data   bool // some are mapped without being executable
}

// candidate is a file that a mapping may be of. confirm: the mapping's numbers
// are not unique, and stat of its magic link decides.
type candidate struct {
	file    *goneFile
	confirm bool
}

// translate finds out what mappings call the files: a file of each file system
// is mapped and our own mappings are read. Where only the device differs
// (btrfs) the rest follow; where the inode differs too (overlayfs before
// Linux 6.8) each file is mapped.
func translate(ctx context.Context, files map[change.InodeKey]*goneFile, open opener) (*wanted, error) {
	w := &wanted{byStat: files, byMaps: make(map[change.InodeKey]candidate, len(files))}
	byDev := map[uint64][]*goneFile{}
	for _, f := range files {
		byDev[f.key.Dev] = append(byDev[f.key.Dev], f)
		w.data = w.data || f.data
	}
	for dev, list := range byDev {
		probe := probeDevice(list, open)
		for _, f := range list {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			key := change.InodeKey{Dev: probe.dev, Ino: f.key.Ino}
			if probe.opaque {
				mapped, err := identify(f, open)
				if err != nil {
					continue // empty or not there any more: nobody maps it by these numbers
				}
				key = mapped
			}
			w.byMaps[key] = candidate{file: f, confirm: probe.opaque || probe.dev != dev}
		}
	}
	return w, nil
}

type deviceProbe struct {
	dev    uint64
	opaque bool // inode numbers differ
}

// probeDevice maps one of a file system's files. Where none can be mapped the
// numbers are taken to agree, as they do on all but two file systems.
func probeDevice(list []*goneFile, open opener) deviceProbe {
	const attempts = 16
	tried := 0
	for _, f := range list {
		if f.size == 0 {
			continue
		}
		if tried++; tried > attempts {
			break
		}
		key, err := identify(f, open)
		if err == nil {
			return deviceProbe{dev: key.Dev, opaque: key.Ino != f.key.Ino}
		}
	}
	return deviceProbe{dev: list[0].key.Dev}
}

var errOther = errors.New("another file lies there")

// identify maps a file and reads what its mapping is called.
func identify(f *goneFile, open opener) (change.InodeKey, error) {
	fd, err := open(f.paths[0])
	if err != nil {
		return change.InodeKey{}, err
	}
	defer fd.Close()
	n, err := fd.Stat()
	if err != nil {
		return change.InodeKey{}, err
	}
	if (change.InodeKey{Dev: n.Dev, Ino: n.Ino}) != f.key || n.Type != change.Regular {
		return change.InodeKey{}, errOther
	}
	dev, ino, err := sys.MapsIdentity(fd)
	return change.InodeKey{Dev: dev, Ino: ino}, err
}

// opener opens a file of the root by its path.
type opener func(path string) (*sys.FD, error)

// Volume is a file system of the root: Dir its directory at Mount, without
// what is mounted below.
type Volume struct {
	Mount string
	Dir   *sys.FD
}

// openIn opens files through the volumes that hold them.
func openIn(volumes []Volume) opener {
	return func(p string) (*sys.FD, error) {
		v := volumeOf(volumes, p)
		if v == nil {
			root, err := sys.OpenRoot("/")
			if err != nil {
				return nil, err
			}
			defer root.Close()
			return sys.OpenNoAtime(root, strings.TrimPrefix(p, "/"))
		}
		return sys.OpenNoAtime(v.Dir, strings.TrimPrefix(below(p, v.Mount), "/"))
	}
}

// volumeOf is the volume that a path lies on; nil where there are none.
func volumeOf(volumes []Volume, p string) *Volume {
	var best *Volume
	for i := range volumes {
		v := &volumes[i]
		if under(p, v.Mount) && (best == nil || len(v.Mount) > len(best.Mount)) {
			best = v
		}
	}
	return best
}

// under tells whether p is dir or lies below it.
func under(p, dir string) bool {
	return dir == "/" || p == dir || strings.HasPrefix(p, dir) && p[len(dir)] == '/'
}

// below is p as seen from dir, "/" for dir itself.
func below(p, dir string) string {
	if dir == "/" {
		return p
	}
	if p == dir {
		return "/"
	}
	return p[len(dir):]
}
