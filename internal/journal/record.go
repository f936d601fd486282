package journal

import (
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"path"
	"strings"

	"github.com/liveupd/liveupd/change"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// record is one line's JSON; exactly one field is set.
type record struct {
	Header *Header      `json:"header,omitempty"`
	Volume *Volume      `json:"volume,omitempty"`
	Op     *opRecord    `json:"op,omitempty"`
	Plan   *change.Plan `json:"plan,omitempty"`
	End    *endRecord   `json:"end,omitempty"`
}

type endRecord struct {
	Records int    `json:"records"`
	SHA256  string `json:"sha256"`
}

type opRecord struct {
	Kind   Kind          `json:"kind"`
	Class  Class         `json:"class"`
	Volume int           `json:"volume"`
	Path   Name          `json:"path"`
	Staged Name          `json:"staged,omitempty"`
	Old    *objectRecord `json:"old,omitempty"`
	New    *objectRecord `json:"new,omitempty"`
}

type objectRecord struct {
	Handle string         `json:"handle,omitempty"` // hexadecimal
	Type   change.Type    `json:"type"`
	Mode   uint32         `json:"mode"`
	UID    uint32         `json:"uid"`
	GID    uint32         `json:"gid"`
	Size   int64          `json:"size,omitempty"`
	Mtime  int64          `json:"mtime"`
	Rdev   uint64         `json:"rdev,omitempty"`
	Nlink  uint32         `json:"nlink,omitempty"`
	Target Name           `json:"target,omitempty"`
	Digest *change.Digest `json:"sha256,omitempty"`
	// Xattrs' keys are encoded names: encoding/json asks no key of kind string
	// for its text.
	Xattrs map[string][]byte `json:"xattrs,omitempty"`
}

func toRecord(o *Object) *objectRecord {
	if o == nil {
		return nil
	}
	r := &objectRecord{
		Handle: hex.EncodeToString([]byte(o.Handle)), Type: o.Type, Mode: o.Mode, UID: o.UID, GID: o.GID,
		Size: o.Size, Mtime: o.Mtime, Rdev: o.Rdev, Nlink: o.Nlink, Target: Name(o.Target),
	}
	if !o.Digest.IsZero() {
		r.Digest = &o.Digest
	}
	if len(o.Xattrs) > 0 {
		r.Xattrs = make(map[string][]byte, len(o.Xattrs))
		for k, v := range o.Xattrs {
			r.Xattrs[Name(k).text()] = v
		}
	}
	return r
}

func (r *objectRecord) object() (*Object, error) {
	if r == nil {
		return nil, nil
	}
	if r.Type < change.Regular || r.Type > change.Socket {
		return nil, fmt.Errorf("object type %d is unknown", r.Type)
	}
	handle, err := hex.DecodeString(r.Handle)
	if err != nil {
		return nil, fmt.Errorf("handle %q: %w", r.Handle, err)
	}
	o := &Object{
		Handle: string(handle), Type: r.Type, Mode: r.Mode, UID: r.UID, GID: r.GID,
		Size: r.Size, Mtime: r.Mtime, Rdev: r.Rdev, Nlink: r.Nlink, Target: string(r.Target),
	}
	if r.Digest != nil {
		o.Digest = *r.Digest
	}
	if len(r.Xattrs) > 0 {
		o.Xattrs = make(map[string][]byte, len(r.Xattrs))
		for k, v := range r.Xattrs {
			var name Name
			if err := name.UnmarshalText([]byte(k)); err != nil {
				return nil, err
			}
			o.Xattrs[string(name)] = v
		}
	}
	return o, nil
}

// op checks what a reader acts upon: kinds have the objects that they need, and
// no name leads out of its folder.
func (r *opRecord) op(volumes int) (Op, error) {
	var op Op
	old, err := r.Old.object()
	if err != nil {
		return op, err
	}
	new, err := r.New.object()
	if err != nil {
		return op, err
	}
	op = Op{Kind: r.Kind, Class: r.Class, Volume: r.Volume, Path: string(r.Path), Staged: string(r.Staged), Old: old, New: new}
	if op.Volume < 0 || op.Volume >= volumes {
		return op, fmt.Errorf("volume %d of %d", op.Volume, volumes)
	}
	if !path.IsAbs(op.Path) || path.Clean(op.Path) != op.Path || strings.ContainsRune(op.Path, 0) {
		return op, fmt.Errorf("path %q is not clean and absolute", op.Path)
	}
	var wantOld, wantNew bool
	var folder string
	switch op.Kind {
	case Add:
		wantNew, folder = true, "up/"
	case Exchange:
		wantOld, wantNew, folder = true, true, "up/"
	case Remove:
		wantOld, folder = true, "del/"
	case Metadata, DirTimes:
		wantOld, wantNew = true, true
	case Member:
		wantOld, wantNew = op.Old != nil, op.Old == nil
	default:
		return op, fmt.Errorf("kind %q is unknown", op.Kind)
	}
	if wantOld != (op.Old != nil) || wantNew != (op.New != nil) {
		return op, fmt.Errorf("kind %s has the wrong objects", op.Kind)
	}
	if folder == "" && op.Staged != "" && op.Kind != Member {
		return op, fmt.Errorf("kind %s has a staged name", op.Kind)
	}
	if folder != "" && (!strings.HasPrefix(op.Staged, folder) || path.Clean(op.Staged) != op.Staged || strings.ContainsRune(op.Staged, 0)) {
		return op, fmt.Errorf("staged name %q is not below %s", op.Staged, folder)
	}
	return op, nil
}
