package transact

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// A file system that lacks what an update needs is found by trying, named, and left
// as it was; one that lacks what this update does not need takes it.
func TestAbilities(t *testing.T) {
	for _, tt := range []struct {
		name  string
		lacks func(c sys.Call) error
		text  string // of the refusal; "" for none
	}{
		{"all is there", func(sys.Call) error { return nil }, ""},
		{"no exchange: NFS, 9p, ZFS before 2.2", failing("renameat2", "work", syscall.EINVAL), "exchanging two names is not supported"},
		{"no exchange, as FUSE says it", failing("renameat2", "work", syscall.ENOSYS), "exchanging two names is not supported"},
		{"no addition without replacing", failing("renameat2", "probe-to", syscall.EINVAL), "adding a name without replacing one"},
		{"no owners: vfat", failing("fchownat", "probe-to", syscall.EPERM), "files of owner"},
		{"an owner that the mount does not map", failing("fchownat", "probe-to", syscall.EOVERFLOW), "files of owner"},
		{"no hard links: exFAT", failing("linkat", "probe-to", syscall.EPERM), "hard links"},
		{"no symlinks: vfat", failing("symlinkat", "probe-kind", syscall.EPERM), "symlinks"},
		{"no devices", failing("mknodat", "probe-kind", syscall.EPERM), "device nodes"},
		{"no capabilities", failing("lsetxattr", "probe-to", syscall.EOPNOTSUPP), "the attribute "},
		{"room that is gone by then", failing("fchownat", "probe-to", syscall.EDQUOT), "gives no more for its quota"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, t.TempDir())
			r.everyChange()
			old := snapshot(t, r.live)
			tried := 0
			k := sys.WithHook(func(c sys.Call) sys.Fault {
				if err := tt.lacks(c); err != nil {
					tried++
					return sys.Fault{Err: err}
				}
				return sys.Fault{}
			})
			s, done, err := r.openWith(k)
			must(t, err)
			defer done()
			src, err := sys.OpenRoot(r.src)
			must(t, err)
			defer src.Close()
			tx, err := s.Begin(Header{})
			must(t, err)
			defer tx.Close()
			err = tx.Stage(context.Background(), r.compare(), src, nil)
			if tt.text == "" {
				must(t, err)
			} else {
				if tried == 0 {
					t.Fatal("it was not tried")
				}
				hint, ok := errors.AsType[*change.HintError](err)
				if err == nil || !strings.Contains(err.Error(), tt.text) || !ok || hint.Hint == "" || !strings.Contains(err.Error(), "/ (") {
					t.Errorf("Stage: %v (%+v); want %q, the file system and a hint", err, hint, tt.text)
				}
			}
			must(t, tx.Discard())
			sameTree(t, "after "+tt.name, old, snapshot(t, r.live))
		})
	}
}

// An update that has no devices, links or attributes asks for none.
func TestAbilitiesThatAreNotNeeded(t *testing.T) {
	r := newRig(t, t.TempDir())
	write(t, r.live, "a", "old", 0o644)
	write(t, r.src, "a", "new", 0o644)
	k := sys.WithHook(func(c sys.Call) sys.Fault {
		switch c.Name {
		case "linkat", "symlinkat", "mknodat", "lsetxattr":
			return sys.Fault{Err: syscall.EOPNOTSUPP}
		}
		return sys.Fault{}
	})
	must(t, r.run(k, r.compare()))
}

func failing(call, name string, err syscall.Errno) func(sys.Call) error {
	return func(c sys.Call) error {
		if c.Name == call && (c.Path == name || c.To == name) {
			return err
		}
		return nil
	}
}
