package sys

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/liveupd/liveupd/change"
)

func TestParseMaps(t *testing.T) {
	text := strings.Join([]string{
		"55d0a0000000-55d0a0002000 r--p 00000000 08:01 77                         /usr/bin/cat",
		"55d0a0002000-55d0a0007000 r-xp 00002000 08:01 77                         /usr/bin/cat",
		"55d0a1000000-55d0a1021000 rw-p 00000000 00:00 0                          [heap]",
		"7f0000000000-7f0000001000 r-xp 00000000 fe:12 9007199254740993           /usr/lib/a b.so (deleted)",
		"7f0000001000-7f0000002000 rw-s 00000000 00:05 12                         /dev/zero (deleted)",
		`7f0000002000-7f0000003000 r--p 00000000 103:100001 5                     /x\012y`,
		"ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]",
		"nonsense",
	}, "\n")
	var got []Mapping
	ParseMaps([]byte(text), func(m Mapping) bool { got = append(got, m); return true })
	want := []Mapping{
		{0x55d0a0000000, 0x55d0a0002000, unix.Mkdev(8, 1), 77, false, "/usr/bin/cat", nil},
		{0x55d0a0002000, 0x55d0a0007000, unix.Mkdev(8, 1), 77, true, "/usr/bin/cat", nil},
		{0x7f0000000000, 0x7f0000001000, unix.Mkdev(0xfe, 0x12), 9007199254740993, true, "/usr/lib/a b.so (deleted)", nil},
		{0x7f0000001000, 0x7f0000002000, unix.Mkdev(0, 5), 12, false, "/dev/zero (deleted)", nil},
		{0x7f0000002000, 0x7f0000003000, unix.Mkdev(0x103, 0x100001), 5, false, "/x\ny", nil},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(Mapping{})); diff != "" {
		t.Errorf("ParseMaps() (-want +got):\n%s", diff)
	}
	n := 0
	ParseMaps([]byte(text), func(Mapping) bool { n++; return false })
	if n != 1 {
		t.Errorf("ParseMaps went on after false: %d calls", n)
	}
}

func FuzzParseMaps(f *testing.F) {
	f.Add([]byte("55d0a0000000-55d0a0002000 r-xp 00000000 08:01 77 /usr/bin/cat\n"))
	f.Add([]byte("1-2 r--p 0 0:0 1"))
	f.Fuzz(func(t *testing.T, text []byte) {
		ParseMaps(text, func(m Mapping) bool {
			if m.Ino == 0 || m.End <= m.Start {
				t.Errorf("ParseMaps yields %+v", m)
			}
			return true
		})
	})
}

// child starts a process that lives until the test ends.
func child(t testing.TB) (*exec.Cmd, *Proc) {
	t.Helper()
	cmd := exec.Command("/bin/cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	// Its answer shows that its libraries are mapped.
	if _, err := in.Write([]byte("x\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	root, err := OpenRoot("/proc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	p, err := OpenProc(root, cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return cmd, p
}

// Both ways to read mappings say the same, name for name.
func TestMapsQueryAgreesWithText(t *testing.T) {
	_, p := child(t)
	for _, exec := range []bool{false, true} {
		read := func(text bool) []Mapping {
			var out []Mapping
			err := p.Maps(MapsOptions{Exec: exec, Text: text}, func(m *Mapping) bool {
				m.Path()
				c := *m
				c.maps = nil
				out = append(out, c)
				return true
			})
			if err != nil {
				t.Fatal(err)
			}
			return out
		}
		text := read(true)
		if len(text) < 2 {
			t.Fatalf("cat has %d mappings", len(text))
		}
		query := read(false)
		if procmapMissing.Load() {
			t.Skip("this kernel has no PROCMAP_QUERY (Linux 6.11)")
		}
		if diff := cmp.Diff(text, query, cmp.AllowUnexported(Mapping{})); diff != "" {
			t.Errorf("exec %v: text and PROCMAP_QUERY differ (-text +query):\n%s", exec, diff)
		}
	}
}

func TestProcLooks(t *testing.T) {
	cmd, p := child(t)
	var exe, want change.Node
	if err := p.StatInto("exe", &exe); err != nil {
		t.Fatal(err)
	}
	bin, err := OpenRoot("/bin")
	if err != nil {
		t.Fatal(err)
	}
	defer bin.Close()
	if err := LstatInto(bin, "cat", &want); err != nil {
		t.Fatal(err)
	}
	if exe.Dev != want.Dev || exe.Ino != want.Ino {
		t.Errorf("exe is %d:%d; want %d:%d", exe.Dev, exe.Ino, want.Dev, want.Ino)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	// The handle stays with the process that has ended.
	if err := p.StatInto("exe", &exe); !IsGone(err) {
		t.Errorf("StatInto() after its end: %v", err)
	}
	if _, err := p.ReadFile("stat", nil); !IsGone(err) {
		t.Errorf("ReadFile() after its end: %v", err)
	}
}

func TestMapsIdentity(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir, err := OpenRoot(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	f, err := OpenNoAtime(dir, "file")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dev, ino, err := MapsIdentity(f)
	if err != nil {
		t.Fatal(err)
	}
	n, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if dev != n.Dev || ino != n.Ino {
		t.Errorf("MapsIdentity() = %d, %d; stat says %d, %d", dev, ino, n.Dev, n.Ino)
	}
}

func TestReadClocks(t *testing.T) {
	c, err := ReadClocks()
	if err != nil {
		t.Fatal(err)
	}
	if d := time.Since(time.Unix(0, c.Real)); d < 0 || d > time.Minute {
		t.Errorf("real time is %v off", d)
	}
	if c.Boot < c.Monotonic || c.Monotonic <= 0 {
		t.Errorf("ReadClocks() = %+v", c)
	}
}
