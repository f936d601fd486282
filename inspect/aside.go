package inspect

import (
	"debug/elf"
	"path"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// setAside is the path that a library was renamed away from, "" where it was not:
// who loads it by the name that it calls itself by gets another file from the same
// folder now.
func (s *staleScan) setAside(root *sys.FD, name string, key change.InodeKey, p *sys.Proc, link string) string {
	own := ownName(p, link)
	if own == "" || own == path.Base(name) {
		return ""
	}
	other := path.Join(path.Dir(name), own)
	n, err := statIn(root, other)
	if err != nil || n.Type != change.Regular || n.Dev == key.Dev && n.Ino == key.Ino ||
		sameContent(root, other, p, link) || sameProgram(root, other, p, link) {
		return ""
	}
	return other
}

// ownName is what a library calls itself (DT_SONAME), "" where it does not.
func ownName(p *sys.Proc, link string) string {
	f, err := p.Open(link, sys.OpenRead)
	if err != nil {
		return ""
	}
	defer f.Close()
	e, err := elf.NewFile(f)
	if err != nil {
		return ""
	}
	names, err := e.DynString(elf.DT_SONAME)
	if err != nil || len(names) != 1 || strings.Contains(names[0], "/") {
		return ""
	}
	return names[0]
}
