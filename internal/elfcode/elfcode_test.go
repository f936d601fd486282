package elfcode

import (
	"bytes"
	"debug/elf"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// subject is a program of this machine that carries a build ID.
func subject(t testing.TB) []byte {
	t.Helper()
	for _, name := range []string{"/usr/bin/true", "/bin/true", "/usr/bin/ls"} {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		if id, err := BuildID(bytes.NewReader(b)); err == nil && id != nil {
			return b
		}
	}
	t.Skip("no program with a build ID here")
	return nil
}

// ends gives the end of the last segment in the file, and a place inside of a
// segment of each kind of permission.
func ends(t *testing.T, b []byte) (end int, code, data int) {
	t.Helper()
	f, err := Open(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_LOAD {
			continue
		}
		end = max(end, int(p.Off+p.Filesz))
		switch {
		case p.Flags&elf.PF_X != 0:
			code = int(p.Off + p.Filesz/2)
		case p.Flags&elf.PF_W != 0:
			data = int(p.Off + p.Filesz - 1)
		}
	}
	return end, code, data
}

func TestSame(t *testing.T) {
	old := subject(t)
	end, code, data := ends(t, old)
	id, err := BuildID(bytes.NewReader(old))
	if err != nil {
		t.Fatal(err)
	}
	flip := func(at int) func([]byte) []byte {
		return func(b []byte) []byte { b[at] ^= 0xff; return b }
	}
	cases := []struct {
		name string
		edit func([]byte) []byte
		want bool
	}{
		{"the same bytes", func(b []byte) []byte { return b }, true},
		{"a signature behind it", func(b []byte) []byte { return append(b, "~signed~"...) }, true},
		{"stripped of all sections", func(b []byte) []byte {
			clear(b[0x28:0x30])
			clear(b[0x3a:0x40])
			return b[:end]
		}, true},
		{"section headers that lie", func(b []byte) []byte { copy(b[0x28:0x30], "\xff\xff\xff\xff"); return b }, true},
		{"what lies behind the segments", flip(len(old) - 200), true},
		{"patched code under the old build ID", flip(code), false},
		{"patched data under the old build ID", flip(data), false},
		{"another entry point", flip(0x18), false},
		{"another build ID", flip(bytes.Index(old, id)), false},
		{"no build ID", flip(bytes.Index(old, id) - 4), false},
		{"cut off within a segment", func(b []byte) []byte { return b[:end-1] }, false},
		{"of another machine", flip(0x12), false},
		{"no ELF file", func([]byte) []byte { return []byte("#!/bin/sh\n") }, false},
		{"empty", func([]byte) []byte { return nil }, false},
	}
	for _, c := range cases {
		changed := c.edit(slices.Clone(old))
		for _, order := range [][2][]byte{{old, changed}, {changed, old}} {
			if got := Same(bytes.NewReader(order[0]), bytes.NewReader(order[1])); got != c.want {
				t.Errorf("%s: Same = %v; want %v", c.name, got, c.want)
			}
		}
	}
}

// What the tools of the trade make of a program is the same program.
func TestSameAfterTools(t *testing.T) {
	for _, tool := range []string{"gcc", "objcopy", "strip", "readelf"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("no %s here", tool)
		}
	}
	dir := t.TempDir()
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
		return string(out)
	}
	source := "int x = %; const char *const s = \"text\"; int main(void) { return x; }\n"
	for name, x := range map[string]string{"a.c": "1", "b.c": "2"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(strings.Replace(source, "%", x, 1)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "sig"), []byte("signature"), 0o644); err != nil {
		t.Fatal(err)
	}
	cc := []string{"gcc", "-g", "-O1", "-Wl,--build-id=sha1"}
	run(append(cc, "-o", "a", "a.c")...)
	run(append(cc, "-o", "b", "b.c")...)
	run(append(cc, "-shared", "-fPIC", "-o", "lib.so", "a.c")...)
	run("gcc", "-Wl,--build-id=none", "-o", "none", "a.c")
	run("gcc", "-Wl,--build-id=0x00112233445566778899aabb", "-o", "fixed1", "a.c")
	run("gcc", "-Wl,--build-id=0x00112233445566778899aabb", "-o", "fixed2", "b.c")
	for _, base := range []string{"a", "lib.so"} {
		run("strip", "-o", base+".strip", base)
		run("strip", "--strip-unneeded", "-o", base+".unneeded", base)
		run("objcopy", "--only-keep-debug", base, base+".debug")
		run("objcopy", "--add-gnu-debuglink="+base+".debug", base+".strip", base+".link")
		run("objcopy", "--add-section", ".sig=sig", base, base+".signed")
		run("objcopy", "--compress-debug-sections", base, base+".z")
		run("objcopy", "--remove-section=.comment", base, base+".comment")
	}
	open := func(name string) *bytes.Reader {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return bytes.NewReader(b)
	}
	compared := 0
	for _, base := range []string{"a", "lib.so"} {
		for _, suffix := range []string{".strip", ".unneeded", ".link", ".signed", ".z", ".comment"} {
			compared++
			if !Same(open(base), open(base+suffix)) {
				t.Errorf("%s and %s are not the same; want that they are", base, base+suffix)
			}
		}
	}
	for _, pair := range [][2]string{{"a", "b"}, {"none", "none"}, {"fixed1", "fixed2"}, {"a", "lib.so"}, {"a", "a.debug"}} {
		compared++
		if Same(open(pair[0]), open(pair[1])) {
			t.Errorf("%s and %s are the same; want that they are not", pair[0], pair[1])
		}
	}
	for _, name := range []string{"a", "b", "lib.so", "fixed1"} {
		id, err := BuildID(open(name))
		if want := run("readelf", "-n", name); err != nil || !strings.Contains(want, "Build ID: "+hex.EncodeToString(id)) {
			t.Errorf("BuildID(%s) = %x, %v; readelf says\n%s", name, id, err, want)
		}
	}
	t.Logf("%d pairs compared", compared)
}

func FuzzSame(f *testing.F) {
	b := subject(f)
	f.Add(b[:4096], b[:4096])
	f.Add([]byte("\x7fELF\x01\x01\x01"), []byte("\x7fELF"))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		same := Same(bytes.NewReader(a), bytes.NewReader(b))
		if same != Same(bytes.NewReader(b), bytes.NewReader(a)) {
			t.Error("Same depends on the order")
		}
		if !same {
			return
		}
		id, err := BuildID(bytes.NewReader(a))
		if err != nil || id == nil {
			t.Errorf("the same without a build ID: %x, %v", id, err)
		}
	})
}
