package patch

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/liveupd/liveupd/change"
)

// forge makes a file of a head and frames that need not fit.
func forge(t testing.TB, head any, frames ...[]byte) []byte {
	t.Helper()
	text, ok := head.(string)
	if !ok {
		b, err := json.Marshal(head)
		do(t, err)
		text = string(b)
	}
	out := []byte(magic)
	for _, f := range append([][]byte{squeeze(t, []byte(text))}, frames...) {
		out = binary.LittleEndian.AppendUint32(out, uint32(len(f)))
		out = append(out, f...)
	}
	return out
}

func squeeze(t testing.TB, b []byte) []byte {
	t.Helper()
	f, err := encodeAll(b, nil, zstd.SpeedFastest)
	do(t, err)
	return f
}

// read gives what a patch becomes on a root.
func read(t testing.TB, patch []byte, root string) ([]byte, error) {
	t.Helper()
	p, err := Open(t.Context(), bytes.NewReader(patch), opener(dir(t, root)), nil)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(p.Tar(t.Context()))
}

// Each of these is refused by what is wrong with it.
func TestHostile(t *testing.T) {
	root := t.TempDir()
	do(t, os.WriteFile(filepath.Join(root, "base"), []byte("base"), 0o644), os.Symlink("base", filepath.Join(root, "link")),
		syscall.Mkfifo(filepath.Join(root, "fifo"), 0o600), os.Mkdir(filepath.Join(root, "folder"), 0o755),
		os.WriteFile(filepath.Join(root, "folder/in"), []byte("base"), 0o644), os.Symlink("folder", filepath.Join(root, "way")))
	text := []byte("what comes out of it")
	frame := squeeze(t, text)
	of := func(size int64, digest change.Digest, dict ...part) group {
		return group{Size: size, Digest: digest, Dict: dict}
	}
	good := of(int64(len(text)), sumOf(text))
	base := func(p string) head {
		return head{Encoder: "x", Bases: []Base{{Path: []byte(p), Size: 4, Digest: sumOf([]byte("base"))}}}
	}
	gone := func(paths ...string) head {
		h := head{Encoder: "x"}
		for _, p := range paths {
			h.Gone = append(h.Gone, Gone{Path: []byte(p)})
		}
		return h
	}
	two := base("/base")
	two.Bases = append(two.Bases, two.Bases[0])
	with := func(g ...group) head { h := base("/base"); h.Groups = g; return h }
	large := with(of(good.Size, good.Digest, part{Len: maxDict}, part{Len: 1}))
	large.Bases[0].Size = 1 << 40
	zeros := squeeze(t, make([]byte, 128<<20))
	short := forge(t, with(good), frame)
	huge := binary.LittleEndian.AppendUint32([]byte(magic), 1<<31)
	tests := []struct {
		name  string
		patch []byte
		want  string
	}{
		{"empty", nil, "ends too early"},
		{"another version", []byte("LIVEUPD-PATCH 2\n\x00\x00\x00\x00"), "of a version that is not known"},
		{"a tar archive", headers("/x", &change.Node{Type: change.Directory}, "", false, nil), "it is no patch"},
		{"a head that is huge", huge, "at most"},
		{"a head that is missing", binary.LittleEndian.AppendUint32([]byte(magic), 1000), "ends too early"},
		{"a head that is a bomb", append(binary.LittleEndian.AppendUint32([]byte(magic), uint32(len(zeros))), zeros...), "its head cannot be read"},
		{"a head that is no frame", append(binary.LittleEndian.AppendUint32([]byte(magic), 4), "abcd"...), "its head cannot be read"},
		{"a head that is no JSON", forge(t, "hello"), "its head cannot be read"},
		{"a head with an unknown key", forge(t, `{"encoder":"x","groups":[],"more":1}`), "its head cannot be read"},
		{"two heads", forge(t, `{"encoder":"x","groups":[]}{"encoder":"x","groups":[]}`), "followed by something else"},
		{"a base that is relative", forge(t, base("base")), "no absolute, plain path"},
		{"a base that leaves", forge(t, base("/../base")), "no absolute, plain path"},
		{"the root as a base", forge(t, base("/")), "no absolute, plain path"},
		{"a base with a NUL byte", forge(t, base("/ba\x00se")), "no name that Linux can hold"},
		{"a base of a name that is too long", forge(t, base("/"+strings.Repeat("x/", 2500)+"x")), "no name that Linux can hold"},
		{"a base in liveupd's own", forge(t, base("/.liveupd/history")), "liveupd's own"},
		{"a base twice", forge(t, two), "out of order"},
		{"a base of less than nothing", forge(t, `{"encoder":"x","bases":[{"path":"L2Jhc2U=","size":-1,"sha256":"`+sumOf(nil).String()+`"}],"groups":[]}`), "impossible size"},
		{"a base that is missing", forge(t, base("/nothing")), "there is none"},
		{"a base that is a symlink", forge(t, base("/link")), "cannot be opened"},
		{"a base behind a symlink", forge(t, base("/way/in")), "cannot be opened"},
		{"a base that is a fifo", forge(t, base("/fifo")), "cannot be opened"},
		{"a base that is a folder", forge(t, base("/folder")), "cannot be opened"},
		{"a base of another size", forge(t, head{Encoder: "x", Bases: []Base{{Path: []byte("/base"), Size: 5, Digest: sumOf([]byte("base"))}}}), "4 bytes and not 5"},
		{"a base of other content", forge(t, head{Encoder: "x", Bases: []Base{{Path: []byte("/base"), Size: 4, Digest: sumOf([]byte("esab"))}}}), "here it has the digest"},
		{"a name that is made for a terminal", forge(t, base("/\x1b[31m\nred")), `"/\x1b[31m\nred"`},
		{"a removal that leaves", forge(t, gone("/../etc")), "no absolute, plain path"},
		{"a removal of the root", forge(t, gone("/")), "no absolute, plain path"},
		{"a removal of liveupd's own", forge(t, gone("/.liveupd")), "liveupd's own"},
		{"removals out of order", forge(t, gone("/b", "/a")), "out of order"},
		{"a removal twice", forge(t, gone("/a", "/a")), "out of order"},
		{"a group of less than nothing", forge(t, with(of(-1, sumOf(text))), frame), "has -1 bytes"},
		{"a group beyond the limit", forge(t, with(of(maxGroup+1, sumOf(text))), frame), "at most"},
		{"groups that are too much together", forge(t, with(many(maxTotal/maxGroup+1, of(maxGroup, sumOf(text)))...)), "more than"},
		{"a dictionary of no base", forge(t, with(of(good.Size, good.Digest, part{Base: 1, Len: 1})), frame), "a file that there is not"},
		{"a dictionary beyond a base", forge(t, with(of(good.Size, good.Digest, part{Base: 0, Off: 2, Len: 3})), frame), "a file that there is not"},
		{"a dictionary before a base", forge(t, with(of(good.Size, good.Digest, part{Base: 0, Off: -1, Len: 3})), frame), "a file that there is not"},
		{"a dictionary that is too much", forge(t, large, frame), "bytes of old files"},
		{"a group of other content", forge(t, with(of(good.Size, sumOf(nil))), frame), "not what its head says"},
		{"a group of more than it says", forge(t, with(of(good.Size-1, good.Digest)), frame), "group 1"},
		{"a group of less than it says", forge(t, with(of(good.Size+1, good.Digest)), frame), "group 1"},
		{"a group that is a bomb", forge(t, with(of(1000, good.Digest)), zeros), "group 1 cannot be unpacked"},
		{"a group that is missing", forge(t, with(good, good), frame), "ends too early"},
		{"a group too many", forge(t, with(good), frame, frame), "after its end"},
		{"a group that is cut off", short[:len(short)-1], "ends too early"},
		{"a group that is no frame", forge(t, with(good), []byte("abcd")), "group 1 cannot be unpacked"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out, err := read(t, tt.patch, root)
			if !errors.Is(err, change.ErrVerification) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%d bytes, %v; want a refusal with %q", len(out), err, tt.want)
			}
			if err != nil && strings.ContainsAny(err.Error(), "\x1b\n") {
				t.Errorf("the message has control characters: %q", err)
			}
		})
	}
	// The control: the good one is taken.
	if out, err := read(t, forge(t, with(good), frame), root); err != nil || !bytes.Equal(out, text) {
		t.Errorf("a good patch: %q, %v", out, err)
	}
	t.Logf("%d patches refused", len(tests))
}

func many[T any](n int, one T) []T {
	out := make([]T, n)
	for i := range out {
		out[i] = one
	}
	return out
}

// A window that would need gigabytes is refused before it is made.
func TestWindowBomb(t *testing.T) {
	if _, err := exec.LookPath("zstd"); err != nil {
		t.Skip("needs the program zstd")
	}
	text := make([]byte, 1000)
	cmd := exec.Command("zstd", "-q", "-1", "--ultra", "--long=31", "--no-check", "-c")
	cmd.Stdin = bytes.NewReader(text)
	frame, err := cmd.Output()
	do(t, err)
	h := head{Encoder: "x", Groups: []group{{Size: 1000, Digest: sumOf(text)}}}
	if _, err := read(t, forge(t, h, frame), t.TempDir()); !errors.Is(err, change.ErrVerification) || !strings.Contains(fmt.Sprint(err), "window") {
		t.Errorf("read = %v; want a refusal of the window", err)
	}
}

func sumOf(b []byte) change.Digest { return sha256.Sum256(b) }
