package journal

import (
	"bytes"
	"errors"
	"io/fs"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

func sample() *Journal {
	old := &Object{Handle: "\x00\x00\x00\x01\x7fabc", Type: change.Regular, Mode: 0o4755, UID: 1, GID: 2, Size: 3, Mtime: -5, Nlink: 2, Digest: change.Digest{1, 2}}
	link := &Object{Type: change.Symlink, Mode: 0o777, Target: "../\xff\n%41", Mtime: 7}
	meta := &Object{Type: change.Directory, Mode: 0o1777, Xattrs: map[string][]byte{"user.\x80": {0, 255}, "security.selinux": []byte("x\x00")}}
	return &Journal{
		Header:  Header{Version: Version, ID: "20261120T101112Z-0011223344556677", Time: 1, Source: "tree:/x", PlanID: "p", HostAction: change.ActionKexec},
		Volumes: []Volume{{Mount: "/", ID: "a"}, {Mount: "/v\xffr"}},
		Ops: InMemory([]Op{
			{Kind: Add, Path: "/a\nb", Staged: "up/a\nb", New: link},
			{Kind: Exchange, Class: ClassData, Volume: 1, Path: "/v\xffr/%2F", Staged: "up/%2F", Old: old, New: link},
			{Kind: Remove, Class: ClassRemove, Path: "/c", Staged: "del/000001", Old: old},
			{Kind: Metadata, Class: ClassMetadata, Path: "/", Old: meta, New: meta},
			{Kind: Member, Class: ClassMember, Path: "/c/d", Old: old},
		}),
		Made: &change.Plan{ID: "p", Schema: 1},
	}
}

func encode(t testing.TB, j *Journal) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := NewWriter(&buf, j.Header)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range j.Volumes {
		if err := w.Volume(v); err != nil {
			t.Fatal(err)
		}
	}
	for op, err := range j.Ops.Where(HasOld | HasNew) {
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Op(op); err != nil {
			t.Fatal(err)
		}
	}
	plan, err := j.Plan()
	if err != nil {
		t.Fatal(err)
	}
	if plan != nil {
		if err := w.Plan(plan); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func readBytes(b []byte, file string) (*Journal, error) {
	return Read(bytes.NewReader(b), int64(len(b)), file)
}

// content is all that a journal says.
type content struct {
	Header  Header
	Volumes []Volume
	Ops     []Op
	Plan    *change.Plan
}

func whole(t testing.TB, j *Journal) content {
	t.Helper()
	c := content{Header: j.Header, Volumes: j.Volumes}
	for op, err := range j.Ops.Where(HasOld | HasNew) {
		if err != nil {
			t.Fatal(err)
		}
		c.Ops = append(c.Ops, *op)
	}
	var err error
	if c.Plan, err = j.Plan(); err != nil {
		t.Fatal(err)
	}
	return c
}

// What the file says after it was opened is checked again, each time.
func TestChangedUnderTheReader(t *testing.T) {
	b := encode(t, sample())
	j, err := readBytes(b, "tx/journal")
	if err != nil {
		t.Fatal(err)
	}
	for i := range b {
		b[i] ^= 0x20
	}
	if _, err := j.Ops.At(1); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "tx/journal") {
		t.Errorf("an operation that changed gives %v; want ErrCorrupt", err)
	}
	if _, err := j.Plan(); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a plan that changed gives %v; want ErrCorrupt", err)
	}
	n := 0
	for range j.Ops.Backward(HasOld | HasNew) {
		n++
	}
	if n != 1 {
		t.Errorf("%d operations after the first that cannot be read", n-1)
	}
}

func TestRoundTrip(t *testing.T) {
	want := sample()
	got, err := readBytes(encode(t, want), "j")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(whole(t, want), whole(t, got)); d != "" {
		t.Errorf("read differs from written (-want +got):\n%s", d)
	}
	for i := range got.Ops.Len() {
		if got.Ops.Mark(i) != want.Ops.Mark(i) {
			t.Errorf("operation %d is marked %b; want %b", i, got.Ops.Mark(i), want.Ops.Mark(i))
		}
	}
	if !got.Ops.Uses(0) || !got.Ops.Uses(1) || got.Ops.Uses(2) {
		t.Error("the volumes that are used are not those of the operations")
	}
	h, err := ReadHeader(bytes.NewReader(encode(t, want)), "j")
	if err != nil || h != want.Header {
		t.Errorf("ReadHeader = %+v, %v; want %+v", h, err, want.Header)
	}
}

func TestEveryCutAndEveryChangedByteIsFound(t *testing.T) {
	b := encode(t, sample())
	for n := range len(b) {
		if _, err := readBytes(b[:n], "tx/journal"); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "tx/journal") {
			t.Fatalf("cut at %d of %d: error %v; want ErrCorrupt that names the file", n, len(b), err)
		}
	}
	for n := range len(b) {
		changed := bytes.Clone(b)
		changed[n] ^= 4
		_, err := readBytes(changed, "j")
		// Hexadecimal digits may change case without changing the value.
		if err == nil {
			t.Fatalf("byte %d (%q) changed: no error", n, b[n])
		}
	}
	// A record that is missing as a whole passes its neighbours' checksums.
	all := bytes.SplitAfter(b, []byte("\n"))
	short := bytes.Join(append(append([][]byte{}, all[:3]...), all[4:]...), nil)
	if _, err := readBytes(short, "j"); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a missing record: error %v; want ErrCorrupt", err)
	}
	if _, err := readBytes(append(bytes.Clone(b), 'x'), "j"); !errors.Is(err, ErrCorrupt) {
		t.Errorf("bytes after the end: error %v; want ErrCorrupt", err)
	}
}

func TestReadRefuses(t *testing.T) {
	line := func(s string) []byte {
		l, err := encodeLine(raw(s))
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	header := `{"header":{"version":1,"id":"x","time":1,"source":"","plan":"","host_action":"none","changes":{"added":0,"replaced":0,"removed":0,"metadata":0,"identical":0,"bytes":0}}}`
	volume := `{"volume":{"mount":"/"}}`
	object := `{"type":1,"mode":0,"uid":0,"gid":0,"mtime":0}`
	for _, tt := range []struct {
		name  string
		lines []string
		want  error
	}{
		{"another version", []string{strings.Replace(header, `"version":1`, `"version":2`, 1)}, ErrVersion},
		{"no header", []string{volume}, ErrCorrupt},
		{"two headers", []string{header, header}, ErrCorrupt},
		{"an unknown kind", []string{header, volume, `{"op":{"kind":"link","class":0,"volume":0,"path":"/a"}}`}, ErrCorrupt},
		{"an unknown field", []string{header, volume, `{"op":{"kind":"dirtimes","class":0,"volume":0,"path":"/a","old":` + object + `,"new":` + object + `,"atime":1}}`}, ErrCorrupt},
		{"a path that leads out", []string{header, volume, `{"op":{"kind":"dirtimes","class":0,"volume":0,"path":"/../a","old":` + object + `,"new":` + object + `}}`}, ErrCorrupt},
		{"a staged name that leads out", []string{header, volume, `{"op":{"kind":"add","class":0,"volume":0,"path":"/a","staged":"up/../../x","new":` + object + `}}`}, ErrCorrupt},
		{"a volume that is not there", []string{header, `{"op":{"kind":"add","class":0,"volume":0,"path":"/a","staged":"up/a","new":` + object + `}}`}, ErrCorrupt},
		{"an exchange without old", []string{header, volume, `{"op":{"kind":"exchange","class":0,"volume":0,"path":"/a","staged":"up/a","new":` + object + `}}`}, ErrCorrupt},
		{"an empty record", []string{header, `{}`}, ErrCorrupt},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var b []byte
			for _, l := range tt.lines {
				b = append(b, line(l)...)
			}
			if _, err := readBytes(b, "j"); !errors.Is(err, tt.want) {
				t.Errorf("error %v; want %v", err, tt.want)
			}
		})
	}
}

type raw string

func (r raw) MarshalJSON() ([]byte, error) { return []byte(r), nil }

func openDir(t *testing.T) *sys.FD {
	t.Helper()
	dir, err := sys.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	return dir
}

func TestStatusSurvivesEveryFault(t *testing.T) {
	before := Status{Version: Version, State: Staging, Time: 1}
	after := Status{Version: Version, State: Committing, Time: 2, Attempts: 1}
	for n := 1; ; n++ {
		dir := openDir(t)
		if err := WriteStatus(nil, dir, before); err != nil {
			t.Fatal(err)
		}
		calls := 0
		dead := errors.New("dead")
		k := sys.WithHook(func(sys.Call) sys.Fault {
			calls++
			if calls >= n {
				return sys.Fault{Err: dead}
			}
			return sys.Fault{}
		})
		err := WriteStatus(k, dir, after)
		got, rerr := ReadStatus(dir)
		if rerr != nil {
			t.Fatalf("fault at call %d: %v", n, rerr)
		}
		if cmp.Diff(got, before) != "" && cmp.Diff(got, after) != "" {
			t.Fatalf("fault at call %d: state %+v is neither the old nor the new one", n, got)
		}
		if err == nil {
			if n < 5 {
				t.Fatalf("only %d mutating calls: the write is not synced", n-1)
			}
			break
		}
		// What is left over must not hinder the next attempt.
		if err := WriteStatus(nil, dir, after); err != nil {
			t.Fatalf("after a fault at call %d: %v", n, err)
		}
	}
}

func TestStatusAbsentAndDamaged(t *testing.T) {
	dir := openDir(t)
	if _, err := ReadStatus(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent: error %v; want ErrNotExist", err)
	}
	f, err := (*sys.Kernel)(nil).Create(dir, StateName, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := (*sys.Kernel)(nil).Write(f, []byte("00000000 {\"version\":1,\"state\":\"verified\"}\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadStatus(dir); !errors.Is(err, ErrCorrupt) {
		t.Errorf("damaged: error %v; want ErrCorrupt", err)
	}
}

func TestStepsSkipATornLine(t *testing.T) {
	dir := openDir(t)
	one := change.StepResult{Step: change.Step{Seq: 1, Do: "restart", Target: "nginx.service"}, Result: "begun"}
	two := one
	two.Result = "done"
	if err := AppendStep(nil, dir, one); err != nil {
		t.Fatal(err)
	}
	f, err := (*sys.Kernel)(nil).OpenAppend(dir, StepsName)
	if err != nil {
		t.Fatal(err)
	}
	if err := (*sys.Kernel)(nil).Write(f, []byte(`0abc {"step"`)); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := AppendStep(nil, dir, two); err != nil {
		t.Fatal(err)
	}
	got, err := ReadSteps(dir)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]change.StepResult{one, two}, got); d != "" {
		t.Errorf("steps (-want +got):\n%s", d)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(encode(f, sample()))
	f.Add([]byte("00000000 {}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		j, err := readBytes(b, "j")
		if err != nil {
			return
		}
		again, err := readBytes(encode(t, j), "j")
		if err != nil {
			t.Fatalf("what was read cannot be read again: %v", err)
		}
		if d := cmp.Diff(whole(t, j), whole(t, again)); d != "" {
			t.Fatalf("differs when written again:\n%s", d)
		}
	})
}

func FuzzName(f *testing.F) {
	f.Add("a%b\xff\n")
	f.Fuzz(func(t *testing.T, s string) {
		text, err := Name(s).MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		var back Name
		if err := back.UnmarshalText(text); err != nil || string(back) != s {
			t.Fatalf("%q -> %q -> %q, %v", s, text, back, err)
		}
	})
}

func FuzzParseSteps(f *testing.F) {
	f.Add([]byte("00000000 {}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, r := range ParseSteps(b) {
			if _, err := encodeLine(r); err != nil {
				t.Fatal(err)
			}
		}
	})
}
