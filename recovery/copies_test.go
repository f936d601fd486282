package recovery

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCopies(t *testing.T) {
	root := t.TempDir()
	early := archive("kernel/x86/microcode/GenuineIntel.bin", "ucode")
	main := compressed(t, "zstd", archive("usr/lib/udev/rules.d/60-a.rules", "r", "usr/bin/udevadm", "u", "lib/modules/6/kernel/dm.ko", "m", "etc/passwd", "root", "etc/lvm/lvm.conf", "l"))
	for name, b := range map[string][]byte{"vmlinuz-6": []byte("k"), "initrd.img-6": append(early, main...)} {
		if err := os.MkdirAll(filepath.Join(root, "boot"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, "boot", name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s, err := Inspect(root, Options{})
	if err != nil {
		t.Fatal(err)
	}
	paths := []string{"/usr/lib/udev/rules.d/60-a.rules", "/usr/bin/udevadm", "/usr/lib/modules/6/kernel/dm.ko", "/usr/lib/modules/6/kernel/other.ko", "/etc/passwd", "/etc/lvm/lvm.conf", "/etc/motd"}
	want := []string{"/etc/lvm/lvm.conf", "/usr/bin/udevadm", "/usr/lib/modules/6/kernel/dm.ko", "/usr/lib/udev/rules.d/60-a.rules"}
	cache := filepath.Join(t.TempDir(), "c", "names.json")
	for range 2 { // the second time from the cache
		got, err := s.Copies(root, cache, paths)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
	}
	// Another initrd under the same name is read anew.
	if err := os.WriteFile(filepath.Join(root, "boot/initrd.img-6"), archive("etc/motd", "x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Copies(root, cache, paths); err != nil || len(got) != 1 || got[0] != "/etc/motd" {
		t.Errorf("Copies = %v, %v; want /etc/motd alone", got, err)
	}
}
