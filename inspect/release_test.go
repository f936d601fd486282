package inspect

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/liveupd/liveupd/internal/sys"
)

func TestCompareReleases(t *testing.T) {
	ascending := []string{"4.19.0-9-amd64", "5.10.0-9-amd64", "5.10.0-28-amd64", "6.1.0-rc2-amd64", "6.1.0-9-amd64", "6.1.0-18-amd64", "6.12.9+deb13-amd64", "6.12.48+deb13-amd64"}
	for i, a := range ascending {
		for j, b := range ascending {
			got := compareReleases(a, b)
			if want := map[bool]int{true: -1, false: 1}[i < j]; i != j && got != want || i == j && got != 0 {
				t.Errorf("compareReleases(%s, %s) = %d", a, b, got)
			}
		}
	}
	for release, want := range map[string]string{
		"6.1.0-18-cloud-amd64": "cloud-amd64", "6.12.48+deb13-amd64": "amd64", "6.8.0-31-generic": "generic", "6.9.0-rc1": "", "5.14.0-362.el9.x86_64": "",
	} {
		if got := flavour(release); got != want {
			t.Errorf("flavour(%s) = %q; want %q", release, got, want)
		}
	}
}

// image is a kernel image as far as anything looks at it.
func image(t *testing.T, root, release, version string) {
	t.Helper()
	b := make([]byte, 0x600)
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(b[0x20e:], 0x300)
	copy(b[0x500:], release+" (someone@somewhere) "+version)
	if err := os.MkdirAll(filepath.Join(root, "boot"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(root, "boot/vmlinuz-"+release), string(b))
}

func TestKernel(t *testing.T) {
	running, build := sys.KernelRelease(), sys.KernelVersion()
	root := t.TempDir()
	if r := Kernel(root); r != nil {
		t.Errorf("without a kernel: %+v", r)
	}
	image(t, root, running, build)
	if r := Kernel(root); r == nil || r.State != "current" || r.Newest != running {
		t.Errorf("with the kernel that runs: %+v", r)
	}
	image(t, root, running, "#2 another build")
	if r := Kernel(root); r == nil || r.State != "rebuilt" || r.Detail != "another build of the same release: #2 another build" {
		t.Errorf("with another build of it: %+v", r)
	}
	other := "999.1.0-1"
	if f := flavour(running); f != "" {
		other += "-" + f
	}
	image(t, root, other, "#1")
	image(t, root, "9999.0.0-1-anotherflavour", "#1")
	if r := Kernel(root); r == nil || r.State != "newer" || r.Newest != other {
		t.Errorf("with a newer kernel: %+v", r)
	}
}

// microcode is one update, with further signatures behind its data.
func microcode(revision, signature, flags uint32, more ...[2]uint32) []byte {
	const data = 16
	total := 48 + data
	if len(more) > 0 {
		total += 20 + 12*len(more)
	}
	b := make([]byte, total)
	put := func(at int, v uint32) { binary.LittleEndian.PutUint32(b[at:], v) }
	put(0, 1)
	put(4, revision)
	put(12, signature)
	put(24, flags)
	put(28, data)
	put(32, uint32(total))
	if len(more) > 0 {
		put(48+data, uint32(len(more)))
		for i, m := range more {
			put(48+data+20+12*i, m[0])
			put(48+data+20+12*i+4, m[1])
		}
	}
	return b
}

func TestIntelRevision(t *testing.T) {
	file := slices.Concat(
		microcode(0x22, 0x906ed, 0x22), microcode(0x30, 0x906ed, 0x01), microcode(0x40, 0x906ea, 0x22),
		microcode(0x25, 0x1, 0x1, [2]uint32{0x906ec, 0x22}, [2]uint32{0x906ed, 0x20}))
	for _, c := range []struct {
		signature, flags, want uint32
	}{{0x906ed, 0x02, 0x22}, {0x906ed, 0x20, 0x25}, {0x906ed, 0x01, 0x30}, {0x906ea, 0x02, 0x40}, {0x12345, 0x02, 0}} {
		if got := intelRevision(file, c.signature, c.flags); got != c.want {
			t.Errorf("for %#x, flags %#x: %#x; want %#x", c.signature, c.flags, got, c.want)
		}
	}
	for n := range len(file) {
		intelRevision(file[:n], 0x906ed, 2) // a cut file is read as far as it goes
	}
	c, ok := parseCPU([]byte("processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 158\nstepping\t: 13\nmicrocode\t: 0xf8\nflags\t: fpu\n\n"))
	if !ok || c.file() != "06-9e-0d" || c.signature() != 0x906ed || c.revision != 0xf8 {
		t.Errorf("parseCPU = %+v, %v", c, ok)
	}
	for _, text := range []string{"", "vendor_id: AuthenticAMD\n", "vendor_id: GenuineIntel\ncpu family: 6\nmodel: 1\nstepping: 1\nmicrocode: 0x1\nflags: fpu hypervisor\n"} {
		if _, ok := parseCPU([]byte(text)); ok {
			t.Errorf("%q has a revision", text)
		}
	}
}

func FuzzIntelRevision(f *testing.F) {
	f.Add(microcode(1, 2, 3, [2]uint32{4, 5}), uint32(2), uint32(1))
	f.Fuzz(func(_ *testing.T, b []byte, signature, flags uint32) { intelRevision(b, signature, flags) })
}
