package transact

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/journal"
	"github.com/liveupd/liveupd/internal/sys"
)

// look describes the object at a name for the journal; nil where there is none.
func look(dir *sys.FD, name string) (*journal.Object, error) {
	var n change.Node
	if err := sys.LstatInto(dir, name, &n); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	handle, err := sys.Handle(dir, name)
	if err != nil {
		return nil, err
	}
	o := &journal.Object{
		Handle: handle, Type: n.Type, Mode: n.Mode, UID: n.UID, GID: n.GID, Size: n.Size, Mtime: n.MtimeNS,
		Rdev: n.Rdev, Nlink: n.Nlink, Ctime: n.CtimeNS,
	}
	if n.Type == change.Symlink {
		if o.Target, err = sys.Readlink(dir, name); err != nil {
			return nil, err
		}
	}
	return o, nil
}

// same tells whether found is the very object that the journal names. Without
// handles (a file system that has none) its content must be the same.
func same(want, found *journal.Object) bool {
	if want == nil || found == nil {
		return want == found
	}
	if want.Handle != "" && found.Handle != "" {
		return want.Handle == found.Handle && want.Type == found.Type
	}
	return sameContent(want, found) && want.Mtime == found.Mtime
}

func sameContent(want, found *journal.Object) bool {
	if want.Type != found.Type {
		return false
	}
	switch want.Type {
	case change.Regular:
		return want.Size == found.Size
	case change.Symlink:
		return want.Target == found.Target
	case change.CharDevice, change.BlockDevice:
		return want.Rdev == found.Rdev
	}
	return true
}

// untouched tells whether the very object still has the content that the journal
// names: nobody wrote to it. A folder's own mtime says nothing about it.
func untouched(want, found *journal.Object) bool {
	if !same(want, found) || !sameContent(want, found) {
		return false
	}
	return want.Type == change.Directory || want.Mtime == found.Mtime
}

// pristine is untouched, but an mtime alone that changed is looked into: a file
// whose bytes are still those of the journal was not edited.
func pristine(dir *sys.FD, name string, want, found *journal.Object) (bool, error) {
	if untouched(want, found) {
		return true, nil
	}
	if !same(want, found) || !sameContent(want, found) {
		return false, nil
	}
	if want.Type != change.Regular {
		return true, nil // only its mtime differs
	}
	if want.Digest.IsZero() {
		return false, nil
	}
	digest, err := digestAt(dir, name, make([]byte, copyBuffer))
	return digest == want.Digest, err
}

// retained tells whether found, in our own folder, is the old object. A file
// that had further names outside was replaced by a copy when the transaction was
// verified: it has another handle, and the content and metadata.
func retained(want, found *journal.Object) bool {
	if same(want, found) {
		return true
	}
	return want != nil && found != nil && want.Type == change.Regular && want.Nlink > 1 &&
		sameContent(want, found) && want.Mtime == found.Mtime && want.Mode == found.Mode &&
		want.UID == found.UID && want.GID == found.GID
}

// drift says how the live object differs from what was planned; "" for not.
func drift(planned *change.Node, found *journal.Object) string {
	switch {
	case planned == nil && found == nil:
		return ""
	case planned == nil:
		return "something is there now"
	case found == nil:
		return "it is gone"
	case planned.Type != found.Type:
		return fmt.Sprintf("it is a %s now, not a %s", found.Type, planned.Type)
	case planned.Type == change.Symlink && planned.Target != found.Target:
		return fmt.Sprintf("it leads to %q now, not to %q", found.Target, planned.Target)
	case planned.Type == change.Regular && planned.Size != found.Size:
		return fmt.Sprintf("it has %d bytes now, not %d", found.Size, planned.Size)
	case planned.Type != change.Directory && planned.MtimeNS != found.Mtime:
		return "it was modified"
	case planned.Rdev != found.Rdev:
		return "it is another device now"
	case planned.Mode != found.Mode || planned.UID != found.UID || planned.GID != found.GID:
		return "its mode or owner changed"
	case planned.CtimeNS != 0 && planned.Type != change.Directory && planned.CtimeNS != found.Ctime:
		return "its inode was changed"
	}
	return ""
}

func driftError(p, how string) error {
	return change.WithHint(fmt.Errorf("cannot commit %s: %s: %w", p, how, change.ErrDrift), "make a new plan")
}

// notHere tells errors that mean "the path is not what it was".
func notHere(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || isErrno(err, syscall.ENOTDIR) || isErrno(err, syscall.ELOOP) || isErrno(err, syscall.EXDEV)
}
