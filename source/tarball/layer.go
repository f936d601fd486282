package tarball

import (
	"strings"
)

// Whiteouts of the image specification (OCI image-spec, "Layer Filesystem
// Changeset"), which are AUFS's.
const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
	whiteoutMeta   = ".wh..wh." // AUFS's own bookkeeping: .wh..wh.plnk, .wh..wh.orph
)

// whiteout takes an entry that says what goes; done: it is none that makes anything.
func (u *unpacker) whiteout(h *header, parts []string) (done bool, err error) {
	if len(parts) == 0 {
		return false, nil
	}
	for _, part := range parts[:len(parts)-1] {
		if strings.HasPrefix(part, whiteoutPrefix) && !strings.HasPrefix(part, whiteoutMeta) {
			return false, refuse(h.name, "lies below a whiteout")
		}
		if strings.HasPrefix(part, whiteoutMeta) {
			return true, nil
		}
	}
	last := parts[len(parts)-1]
	gone, ok := strings.CutPrefix(last, whiteoutPrefix)
	if !ok {
		return false, nil
	}
	dir := "/" + strings.Join(parts[:len(parts)-1], "/")
	switch {
	case last == whiteoutOpaque:
		u.res.Opaque = append(u.res.Opaque, dir)
	case strings.HasPrefix(last, whiteoutMeta):
		// Nothing of a tree.
	case gone == "" || gone == "." || gone == "..":
		return false, refuse(h.name, "is a whiteout of no name that can be removed")
	case gone == storeName:
		return false, refuse(h.name, "removes %s, which is liveupd's own", storeName)
	default:
		u.res.Removed = append(u.res.Removed, strings.TrimSuffix(dir, "/")+"/"+gone)
	}
	return true, u.t.grow(h.name, len(h.name))
}
