package engine

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/nsmount"
	"github.com/liveupd/liveupd/writable"
)

func TestForeignMounts(t *testing.T) {
	mounts := map[string]nsmount.Foreign{"/boot/efi": {FSType: "vfat"}, "/srv/nfs": {FSType: "nfs4"}}
	rules := func(o writable.Options) foreignRules {
		r, err := writable.New(o)
		if err != nil {
			t.Fatal(err)
		}
		return foreignRules{r, mounts}
	}
	whole := rules(writable.Options{Whole: true})
	for p, want := range map[string]change.Class{
		"/boot/vmlinuz": change.ClassAddOnly, "/boot/efi": change.ClassAddOnly, "/boot/efi/EFI": change.ClassNever,
		"/boot/efi/EFI/debian/grubx64.efi": change.ClassNever, "/boot/efix": change.ClassAddOnly, "/usr/lib/x": change.ClassWhole,
	} {
		if got := whole.Class(p); got != want {
			t.Errorf("Class(%s) = %s; want %s", p, got, want)
		}
	}
	part := rules(writable.Options{})
	if got := part.Class("/srv/nfs/x"); got != change.ClassListed {
		t.Errorf("Class of what a partial tree lists = %s", got)
	}
	for p, hint := range map[string]string{"/boot/efi/EFI/x": "grub-install", "/srv/nfs/x": "unmount", "/boot/efi": "", "/boot/x": "", "/srv/nfsx": ""} {
		err := part.refuse(&change.Delta{Entries: []change.Entry{{Path: p, Op: change.Add, New: &change.Node{Type: change.Regular}}}})
		got, ok := errors.AsType[*change.HintError](err)
		if ok != (hint != "") || ok && (!strings.Contains(got.Hint, hint) || !strings.Contains(err.Error(), p)) {
			t.Errorf("refuse(%s) = %v (%+v); want the hint %q", p, err, got, hint)
		}
	}
	source := t.TempDir()
	dir, err := sys.OpenRoot(source)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if got := whole.warnings(dir); len(got) > 0 {
		t.Errorf("warnings %q of a source that brings nothing", got)
	}
	for _, name := range []string{"boot/efi/EFI", "srv/nfs/x"} {
		if err := os.MkdirAll(filepath.Join(source, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if got := whole.warnings(dir); len(got) != 1 || !strings.Contains(got[0], "/boot/efi is a vfat") {
		t.Errorf("warnings %q; want one of /boot/efi", got)
	}
	if got := part.warnings(dir); len(got) != 1 {
		t.Errorf("warnings %q; want one: what is listed in /srv/nfs is refused, and not warned of", got)
	}
}
