package recovery

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"

	"github.com/liveupd/liveupd/internal/journal"
)

// archive makes a cpio archive of name, content pairs.
func archive(pairs ...string) []byte {
	var b bytes.Buffer
	add := func(name, content string) {
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", 1, 0o100644, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0)
		b.WriteString(name + "\x00")
		b.Write(make([]byte, pad(int64(b.Len()))))
		b.WriteString(content)
		b.Write(make([]byte, pad(int64(b.Len()))))
	}
	for i := 0; i < len(pairs); i += 2 {
		add(pairs[i], pairs[i+1])
	}
	add("TRAILER!!!", "")
	return b.Bytes()
}

const initramfsScript = "scripts/local-bottom/liveupd"

var current = fmt.Sprintln(journal.Version)

// ours is what an initrd with a recovery holds, among other things.
func ours(version string) []byte {
	return archive("bin/sh", strings.Repeat("x", 70000), "./"+programFile, "program", versionFile, version, initramfsScript, "script", "last", "z")
}

func compressed(t *testing.T, name string, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	var err error
	switch name {
	case "":
		return b
	case "gzip":
		w = gzip.NewWriter(&out)
	case "zstd":
		w, err = zstd.NewWriter(&out)
	case "xz":
		w, err = xz.NewWriter(&out)
	case "lzma":
		w, err = lzma.NewWriter(&out)
	default:
		return packed(t, name, b)
	}
	if err == nil {
		_, err = w.Write(b)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// packed compresses with a program, where it is installed.
func packed(t *testing.T, name string, b []byte) []byte {
	t.Helper()
	argv := map[string][]string{"bzip2": {"bzip2"}, "lz4 -l": {"lz4", "-l", "-c"}, "xz -T": {"xz", "--check=crc32"}, "zstd -19": {"zstd", "-19", "-c"}}[name]
	if _, err := exec.LookPath(argv[0]); err != nil {
		t.Skipf("no %s", argv[0])
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin = bytes.NewReader(b)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return out
}

func TestReadInitrd(t *testing.T) {
	microcode := append(archive("kernel/x86/microcode/GenuineIntel.bin", strings.Repeat("m", 5000)), make([]byte, 512)...)
	for _, by := range []string{"", "gzip", "zstd", "xz", "lzma", "bzip2", "lz4 -l", "xz -T", "zstd -19"} {
		t.Run("compressed by "+by, func(t *testing.T) {
			for _, early := range [][]byte{nil, microcode} {
				image := slices.Concat(early, compressed(t, by, ours(current)))
				if got, detail := verdict(readInitrd(bytes.NewReader(image))); got != "yes" {
					t.Errorf("an initrd of %d bytes: %q, %s; want yes", len(image), got, detail)
				}
				plain := slices.Concat(early, compressed(t, by, archive("init", "x")), make([]byte, 300))
				if got, detail := verdict(readInitrd(bytes.NewReader(plain))); got != "no" {
					t.Errorf("one without: %q, %s; want no", got, detail)
				}
				// Cut anywhere, it is never taken for one that was read.
				for _, n := range []int{len(image) - 40, len(image) / 2, len(early) + 10} {
					if n <= len(early) || by == "" && n > len(image)-300 {
						continue
					}
					if got, _ := verdict(readInitrd(bytes.NewReader(plain[:min(n, len(plain)-310)]))); got == "yes" {
						t.Errorf("cut to %d bytes: %q", n, got)
					}
				}
				cut := image[:len(early)+(len(image)-len(early))/2]
				if got, _ := verdict(readInitrd(bytes.NewReader(cut))); got != "unknown" {
					t.Errorf("cut in half: %q; want unknown", got)
				}
			}
		})
	}
	for _, tt := range []struct {
		name, want string
		image      []byte
	}{
		{"another version of the journal", "old", ours("99\n")},
		{"several versions", "yes", ours("99 " + current)},
		{"no version", "no", archive(programFile, "p", initramfsScript, "s")},
		{"no hook", "no", archive(programFile, "p", versionFile, current)},
		{"an empty program", "no", archive(programFile, "", versionFile, current, initramfsScript, "s")},
		{"dracut's hook", "yes", archive(programFile, "p", versionFile, current, "usr/lib/dracut/hooks/pre-pivot/90-liveupd-recover.sh", "s")},
		{"nothing at all", "no", nil},
		{"an unknown compression", "unknown", []byte("\x89LZO\x00\r\n\x1a\n and more")},
		{"a damaged archive", "unknown", append([]byte("070701"), bytes.Repeat([]byte("zz"), 200)...)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got, detail := verdict(readInitrd(bytes.NewReader(tt.image))); got != tt.want {
				t.Errorf("%q, %s; want %q", got, detail, tt.want)
			}
		})
	}
}

// A block by hand: "abcabcabcabc" is three literals and a copy that overlaps itself.
func TestUnpackLZ4(t *testing.T) {
	got, err := unpackLZ4(nil, []byte{0x35, 'a', 'b', 'c', 3, 0})
	if err != nil || string(got) != "abcabcabcabc" {
		t.Errorf("%q, %v", got, err)
	}
	for _, bad := range [][]byte{{0x35, 'a'}, {0x35, 'a', 'b', 'c', 4, 0}, {0x35, 'a', 'b', 'c', 0, 0}, {0x35, 'a', 'b', 'c', 3}, {0xf0, 255}} {
		if got, err := unpackLZ4(nil, bad); err == nil {
			t.Errorf("% x was unpacked to %q", bad, got)
		}
	}
}

// write lays files into a root: name, content pairs; "-> X" is a symlink.
func write(t *testing.T, root string, pairs ...string) {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		name := filepath.Join(root, pairs[i])
		err := os.MkdirAll(filepath.Dir(name), 0o755)
		if target, ok := strings.CutPrefix(pairs[i+1], "-> "); ok && err == nil {
			err = os.Symlink(target, name)
		} else if err == nil {
			err = os.WriteFile(name, []byte(pairs[i+1]), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func inspect(t *testing.T, root string, o Options) *State {
	t.Helper()
	s, err := Inspect(root, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestInspect(t *testing.T) {
	with, without := string(compressed(t, "zstd", ours(current))), string(compressed(t, "gzip", archive("init", "x")))
	systemd := []string{"usr/lib/systemd/systemd", "x"}
	unit := []string{"etc/systemd/system/" + RecoverUnit, "[Unit]\n", "etc/systemd/system/sysinit.target.wants/" + RecoverUnit, "-> /etc/systemd/system/" + RecoverUnit}
	for _, tt := range []struct {
		name  string
		files []string
		o     Options
		lacks []string // parts of each line
	}{
		{"all is there", slices.Concat(systemd, unit, []string{"boot/vmlinuz-1", "k", "boot/initrd.img-1", with}), Options{Live: true}, nil},
		{"dracut's name", slices.Concat(systemd, unit, []string{"boot/vmlinuz-1", "k", "boot/initramfs-1.img", with}), Options{Live: true}, nil},
		{"one of two kernels", slices.Concat(systemd, unit, []string{"boot/vmlinuz-1", "k", "boot/initrd.img-1", with, "boot/vmlinuz-2", "k", "boot/initrd.img-2", without}), Options{Live: true}, []string{"/boot/initrd.img-2 does not recover"}},
		{"no unit", slices.Concat(systemd, []string{"boot/vmlinuz-1", "k", "boot/initrd.img-1", with}), Options{Live: true}, []string{"is missing"}},
		{"the unit is not enabled", slices.Concat(systemd, unit[:2], []string{"boot/vmlinuz-1", "k", "boot/initrd.img-1", with}), Options{Live: true}, []string{"is disabled"}},
		{"the unit is masked", slices.Concat(systemd, []string{unit[0], "-> /dev/null", unit[2], unit[3], "boot/vmlinuz-1", "k", "boot/initrd.img-1", with}), Options{Live: true}, []string{"is disabled"}},
		{"no initrd", slices.Concat(systemd, unit, []string{"boot/vmlinuz-1", "k"}), Options{Live: true}, []string{"/boot/vmlinuz-1 has no initrd"}},
		{"no initrd, and the shim", slices.Concat(systemd, unit, []string{"boot/vmlinuz-1", "k"}), Options{Live: true, Cmdline: "quiet init=/usr/local/lib/liveupd/liveupd-init"}, nil},
		{"another init", slices.Concat(systemd, unit, []string{"boot/vmlinuz-1", "k"}), Options{Live: true, Cmdline: "init=/usr/local/lib/liveupd/liveupd-init init=/bin/sh"}, []string{"has no initrd"}},
		{"no kernel", slices.Concat(systemd, unit), Options{Live: true}, []string{"no kernel in /boot"}},
		{"no kernel in a tree", slices.Concat(systemd, unit), Options{}, nil},
		{"a container", slices.Concat(systemd, unit), Options{Live: true, Container: true}, nil},
		{"a container without the unit", systemd, Options{Live: true, Container: true}, []string{"is missing"}},
		{"an initrd that cannot be read", slices.Concat(systemd, unit, []string{"boot/vmlinuz-1", "k", "boot/initrd.img-1", "\x89LZO"}), Options{Live: true}, []string{"/boot/initrd.img-1 cannot be read"}},
		{
			"a boot entry", slices.Concat(systemd, unit, []string{
				"boot/efi/loader/entries/a.conf", "title x\nlinux /a/linux\ninitrd /a/microcode\ninitrd /a/initrd\n",
				"boot/efi/a/linux", "k", "boot/efi/a/initrd", with, "boot/efi/a/microcode", string(archive("m", "m")),
				"boot/loader/entries/b.conf", "linux /boot/b/linux\ninitrd /boot/b/initrd\n", "boot/b/linux", "k", "boot/b/initrd", without,
			}),
			Options{Live: true},
			[]string{"/boot/b/initrd does not recover"},
		},
		{"an image that is none", slices.Concat(systemd, unit, []string{"efi/EFI/Linux/x.efi", "MZ"}), Options{Live: true}, []string{"/efi/EFI/Linux/x.efi cannot be read"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			write(t, root, tt.files...)
			got := inspect(t, root, tt.o).Lacks()
			if len(got) != len(tt.lacks) {
				t.Fatalf("it lacks %q; want %q", got, tt.lacks)
			}
			for i := range got {
				if !strings.Contains(got[i], tt.lacks[i]) {
					t.Errorf("it lacks %q; want %q", got[i], tt.lacks[i])
				}
			}
		})
	}
}

// The cache answers for a file that was read, and for no other.
func TestVerdicts(t *testing.T) {
	root, cache := t.TempDir(), filepath.Join(t.TempDir(), "run", "initrds.json")
	write(t, root, "boot/vmlinuz-1", "k", "boot/initrd.img-1", string(ours(current)))
	look := func() string { return inspect(t, root, Options{Cache: cache}).Kernels[0].Recovers }
	if got := look(); got != "yes" {
		t.Fatalf("%q", got)
	}
	// The proof that it is asked: a wrong answer in it is given.
	b, err := os.ReadFile(cache)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cache, bytes.ReplaceAll(b, []byte(`"yes"`), []byte(`"old"`)), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := look(); got != "old" {
		t.Errorf("%q: the cache is not asked", got)
	}
	write(t, root, "boot/initrd.img-1", string(archive("init", "x")))
	if got := look(); got != "no" {
		t.Errorf("%q after a change", got)
	}
	if err := os.Chmod(cache, 0o666); err != nil {
		t.Fatal(err)
	}
	if v := loadVerdicts(cache); len(v.known) != 0 {
		t.Errorf("a cache that others can write is used")
	}
}

func TestSetup(t *testing.T) {
	root, bin := t.TempDir(), t.TempDir()
	write(t, bin, "liveupd", "L1", "liveupd-recover", "R1")
	p := Programs{filepath.Join(bin, "liveupd"), filepath.Join(bin, "liveupd-recover")}
	write(t, root, "usr/lib/systemd/systemd", "x", "usr/share/initramfs-tools/init", "x", "usr/lib/dracut/dracut-functions.sh", "x", "etc/hostname", "h")
	before := tree(t, root)
	open := func() *Setup {
		t.Helper()
		u, err := OpenSetup(root, inspect(t, root, Options{}), p)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { u.Close() })
		return u
	}
	install := func() {
		t.Helper()
		if err := open().Install(); err != nil {
			t.Fatal(err)
		}
	}
	install()
	s := inspect(t, root, Options{})
	if lacks := s.Lacks(); len(lacks) > 0 || s.Unit != "enabled" || s.Tool != Initramfs {
		t.Errorf("%+v lacks %q", s, lacks)
	}
	for name, text := range tree(t, root) {
		if strings.Contains(text, "@LIB@") || strings.HasPrefix(filepath.Base(name), ".liveupd") {
			t.Errorf("%s was left as it is: %s", name, text)
		}
	}
	installed := tree(t, root)
	if items, initrds, err := open().Plan(); err != nil || initrds || slices.ContainsFunc(items, func(it setupItem) bool { return it.Action != "keep" }) {
		t.Errorf("doing it again would do %+v, %v, %v", items, initrds, err)
	}
	install()
	if d := cmp.Diff(installed, tree(t, root)); d != "" {
		t.Errorf("doing it again did: %s", d)
	}

	// A new program is laid over ours; what somebody else wrote stays.
	write(t, bin, "liveupd-recover", "R2")
	const hook = "etc/initramfs-tools/hooks/liveupd"
	write(t, root, hook, "mine")
	if _, initrds, err := open().Plan(); err != nil || !initrds {
		t.Errorf("a new program needs no new initrd: %v", err)
	}
	install()
	now := tree(t, root)
	if now["usr/local/lib/liveupd/liveupd-recover"] != installedProgram("R2") || !strings.Contains(now[hook], "mine") {
		t.Errorf("the program is %q, the hook %q", now["usr/local/lib/liveupd/liveupd-recover"], now[hook])
	}
	if err := open().Remove(); err != nil {
		t.Fatal(err)
	}
	left := tree(t, root)
	if !strings.Contains(left[hook], "mine") {
		t.Error("somebody's hook was removed")
	}
	if err := os.RemoveAll(filepath.Join(root, "etc/initramfs-tools")); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(before, tree(t, root)); d != "" {
		t.Errorf("removed, the tree is not what it was: %s", d)
	}
}

// A package's files are used where they are; only the links that enable the units are ours.
func TestSetupPackaged(t *testing.T) {
	root := t.TempDir()
	write(t, root, "usr/lib/systemd/systemd", "x", "usr/share/initramfs-tools/init", "x", "usr/share/initramfs-tools/hooks/liveupd", "x",
		"usr/lib/liveupd/liveupd-recover", "x", "usr/lib/systemd/system/"+RecoverUnit, "[Unit]\n", "usr/lib/systemd/system/"+finishUnit, "[Unit]\n")
	u, err := OpenSetup(root, inspect(t, root, Options{}), Programs{})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	items, _, err := u.Plan()
	if err != nil || len(items) != 2 || items[0].Path != "/etc/systemd/system/sysinit.target.wants/"+RecoverUnit {
		t.Errorf("it would install %+v, %v", items, err)
	}
	if err := u.Install(); err != nil {
		t.Fatal(err)
	}
	if s := inspect(t, root, Options{}); s.Unit != "enabled" {
		t.Errorf("the unit is %s", s.Unit)
	}
}

// A link in the way does not lead the installation out of the root.
func TestSetupStaysInside(t *testing.T) {
	root, outside := t.TempDir(), t.TempDir()
	write(t, root, "usr/lib/systemd/systemd", "x", "etc/systemd", "-> "+outside)
	u, err := OpenSetup(root, inspect(t, root, Options{}), Programs{"/proc/self/exe", "/proc/self/exe"})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if err := u.Install(); err == nil {
		t.Error("it was installed through a link that leads out of the root")
	}
	if names, err := os.ReadDir(outside); err != nil || len(names) > 0 {
		t.Errorf("outside of the root lie %v, %v", names, err)
	}
}
