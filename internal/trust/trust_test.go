package trust

import (
	"bytes"
	"encoding/base64"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"aead.dev/minisign"
	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newSecret(t *testing.T) *Secret {
	t.Helper()
	s, err := GenerateSecret()
	must(t, err)
	return s
}

// publish writes the public half of a key.
func publish(t *testing.T, s *Secret, dir, name string) {
	t.Helper()
	must(t, os.MkdirAll(dir, 0o755))
	must(t, os.WriteFile(filepath.Join(dir, name), s.Public(), 0o644))
}

func signed(t *testing.T, s *Secret, text string) []byte {
	t.Helper()
	sig, err := s.Sign(strings.NewReader(text), "by the test")
	must(t, err)
	return sig
}

func ringOf(dir string) *Keyring { return NewKeyring(Options{Dir: dir}) }

func refused(t *testing.T, err error, want string) {
	t.Helper()
	if !errors.Is(err, change.ErrVerification) || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v; want ErrVerification with %q", err, want)
	}
}

// withID gives a public key's file another ID.
func withID(t *testing.T, s *Secret, id KeyID) []byte {
	t.Helper()
	raw, err := base64.StdEncoding.DecodeString(strings.Split(string(s.Public()), "\n")[1])
	must(t, err)
	for i := range 8 {
		raw[2+i] = byte(id >> (8 * i))
	}
	return []byte("untrusted comment: x\n" + base64.StdEncoding.EncodeToString(raw) + "\n")
}

func TestConfirm(t *testing.T) {
	dir := t.TempDir()
	a, b := newSecret(t), newSecret(t)
	publish(t, a, dir, "a.pub")
	who, err := ringOf(dir).Confirm("it", Text("text"), "it.minisig", signed(t, a, "text"))
	must(t, err)
	if diff := cmp.Diff(&Signer{ID: a.ID(), File: "a.pub", Comment: "by the test"}, who); diff != "" {
		t.Errorf("signer (-want +got):\n%s", diff)
	}
	m, err := ReadStream(strings.NewReader("text"))
	must(t, err)
	_, err = ringOf(dir).Confirm("it", m, "it.minisig", signed(t, a, "text"))
	must(t, err)
	_, err = ringOf(dir).Confirm("it", Text("texT"), "it.minisig", signed(t, a, "text"))
	refused(t, err, "a.pub does not confirm it")
	_, err = ringOf(dir).Confirm("it", Text("text"), "it.minisig", signed(t, b, "text"))
	refused(t, err, "no key in "+dir+" has signed it")
	if hint, ok := errors.AsType[*change.HintError](err); !ok || !strings.Contains(hint.Hint, b.ID().String()) {
		t.Errorf("no hint names the key %s: %v", b.ID(), err)
	}
	// The old kind of signature, over the whole text, is no stream's.
	old := minisign.Sign(a.key, []byte("text"))
	_, err = ringOf(dir).Confirm("it", Text("text"), "it.minisig", old)
	must(t, err)
	_, err = ringOf(dir).Confirm("it", m, "it.minisig", old)
	refused(t, err, "of the old kind")
	// Another key that bears the same ID confirms nothing, alone or before the right one.
	must(t, os.WriteFile(filepath.Join(dir, "0-fake.pub"), withID(t, b, a.ID()), 0o644))
	_, err = ringOf(dir).Confirm("it", Text("text"), "it.minisig", signed(t, a, "text"))
	must(t, err)
	must(t, os.Remove(filepath.Join(dir, "a.pub")))
	_, err = ringOf(dir).Confirm("it", Text("text"), "it.minisig", signed(t, a, "text"))
	refused(t, err, "0-fake.pub does not confirm it")
}

func TestMalformedSignatures(t *testing.T) {
	dir := t.TempDir()
	a := newSecret(t)
	publish(t, a, dir, "a.pub")
	good := string(signed(t, a, "text"))
	line := strings.Split(good, "\n")
	for name, sig := range map[string]string{
		"empty": "", "one line": line[0] + "\n", "no comment": strings.Join(line[1:], "\n"),
		"cut": good[:len(good)-10], "not base64": strings.Replace(good, line[1], "!!", 1),
		"short": strings.Replace(good, line[1], base64.StdEncoding.EncodeToString([]byte("ED short")), 1),
		"huge":  good + strings.Repeat("\n", MaxSignature),
		"NUL":   strings.Repeat("\x00", 200),
	} {
		_, err := ringOf(dir).Confirm("it", Text("text"), "it.minisig", []byte(sig))
		refused(t, err, "cannot read the signature it.minisig")
		if t.Failed() {
			t.Fatal(name)
		}
	}
	// Each changed byte of the good one is found.
	tried := 0
	for i := len(line[0]) + 1; i < len(good)-1; i++ {
		if strings.HasPrefix(good[i:], "trusted comment: ") {
			i += len("trusted comment: ")
		}
		bad := []byte(good)
		bad[i] ^= 1
		if _, err := ringOf(dir).Confirm("it", Text("text"), "it.minisig", bad); err == nil && !sameBase64(good, string(bad)) {
			t.Errorf("byte %d changed, and accepted: %s", i, bad)
		}
		tried++
	}
	t.Logf("%d changed signatures", tried)
}

// sameBase64 tells of a change that base64 does not see: the last bits before its padding.
func sameBase64(a, b string) bool {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range x {
		if x[i] == y[i] {
			continue
		}
		p, err := base64.StdEncoding.DecodeString(x[i])
		q, err2 := base64.StdEncoding.DecodeString(y[i])
		if err != nil || err2 != nil || !bytes.Equal(p, q) {
			return false
		}
	}
	return true
}

func TestRevoked(t *testing.T) {
	dir := t.TempDir()
	a, b := newSecret(t), newSecret(t)
	publish(t, a, dir, "a.pub")
	publish(t, b, dir, "b.pub")
	sig := signed(t, a, "text")
	confirm := func() error {
		_, err := ringOf(dir).Confirm("it", Text("text"), "it.minisig", sig)
		return err
	}
	must(t, confirm())
	fd, err := sys.OpenRoot(dir)
	must(t, err)
	defer fd.Close()
	edit := func() *Edit { return &Edit{Kernel: new(sys.Kernel), Dir: fd, Ring: ringOf(dir)} }
	when := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC).Unix()
	if _, added, err := edit().Revoke("a", "laptop stolen", when); err != nil || !added {
		t.Fatalf("Revoke = %v, %v", added, err)
	}
	const told = "was revoked on 2026-03-04 (laptop stolen)"
	refused(t, confirm(), told)
	if _, added, err := edit().Revoke(a.ID().String(), "again", when); err != nil || added {
		t.Errorf("Revoke again = %v, %v; want nothing to do", added, err)
	}
	// Removed, and added again.
	_, err = edit().Remove("a.pub")
	must(t, err)
	refused(t, confirm(), told)
	_, _, err = edit().Add("a", a.Public())
	refused(t, err, told)
	publish(t, a, dir, "c.pub")
	refused(t, confirm(), told)
	// The same key under another ID.
	must(t, os.WriteFile(filepath.Join(dir, "c.pub"), withID(t, a, 7), 0o644))
	old := bytes.Split(sig, []byte("\n"))
	raw, err := base64.StdEncoding.DecodeString(string(old[1]))
	must(t, err)
	copy(raw[2:10], []byte{7, 0, 0, 0, 0, 0, 0, 0})
	old[1] = []byte(base64.StdEncoding.EncodeToString(raw))
	sig = bytes.Join(old, []byte("\n"))
	refused(t, confirm(), "is the revoked key under another ID")
	// The negative control: without the list it would have been accepted.
	must(t, os.Rename(filepath.Join(dir, RevokedFile), filepath.Join(dir, "off")))
	must(t, confirm())
	must(t, os.Rename(filepath.Join(dir, "off"), filepath.Join(dir, RevokedFile)))
	// The other key still counts; an ID that is not known here can be revoked.
	sig = signed(t, b, "text")
	must(t, confirm())
	_, _, err = edit().Revoke("0123456789ABCDEF", "", when)
	must(t, err)
	list, err := ringOf(dir).Revoked()
	must(t, err)
	if len(list) != 2 || list[1].ID != 0x0123456789ABCDEF || list[0].Reason != "laptop stolen" || list[0].Time != when {
		t.Errorf("revoked: %v", list)
	}
	// What cannot be read refuses all.
	must(t, os.WriteFile(filepath.Join(dir, RevokedFile), []byte("no id\n"), 0o644))
	refused(t, confirm(), "revoked: line 1")
}

// What others could have written counts for nothing.
func TestUnsafe(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it gives files away")
	}
	for _, tt := range []struct {
		name  string
		spoil func(root, keys string) error
		want  string
	}{
		{"the folder's mode", func(_, keys string) error { return os.Chmod(keys, 0o775) }, "others can write"},
		{"the folder's owner", func(_, keys string) error { return os.Chown(keys, 12345, 0) }, "belongs to user 12345"},
		{"the folder above", func(root, _ string) error { return os.Chmod(filepath.Join(root, "etc/liveupd"), 0o757) }, "/etc/liveupd: its mode is 0757"},
		{"etc", func(root, _ string) error { return os.Chown(filepath.Join(root, "etc"), 12345, 0) }, "/etc: it belongs"},
		{"a file's mode", func(_, keys string) error { return os.Chmod(filepath.Join(keys, "a.pub"), 0o666) }, "cannot use a.pub: its mode is 0666"},
		{"a file's owner", func(_, keys string) error { return os.Chown(filepath.Join(keys, "a.pub"), 12345, 0) }, "cannot use a.pub: it belongs"},
		{"a symlink", func(_, keys string) error {
			if err := os.Rename(filepath.Join(keys, "a.pub"), filepath.Join(keys, "x")); err != nil {
				return err
			}
			return os.Symlink("x", filepath.Join(keys, "a.pub"))
		}, "cannot use a.pub: it is a symlink"},
		{"a FIFO", func(_, keys string) error {
			return errors.Join(os.Remove(filepath.Join(keys, "a.pub")), syscall.Mkfifo(filepath.Join(keys, "a.pub"), 0o644))
		}, "cannot use a.pub: it is a "},
		{"no folder but a file", func(_, keys string) error {
			return errors.Join(os.RemoveAll(keys), os.WriteFile(keys, nil, 0o644))
		}, "cannot trust the keys in"},
		{"a link that leaves the root", func(_, keys string) error {
			return errors.Join(os.RemoveAll(keys), os.Symlink("../../../../../../../../etc", keys))
		}, "no key in"},
		{"the list of revoked keys", func(_, keys string) error {
			if err := os.WriteFile(filepath.Join(keys, RevokedFile), nil, 0o644); err != nil {
				return err
			}
			return os.Chmod(filepath.Join(keys, RevokedFile), 0o646)
		}, "revoked: its mode is 0646"},
		{"the list is a folder", func(_, keys string) error { return os.Mkdir(filepath.Join(keys, RevokedFile), 0o755) }, "revoked: it is a directory"},
		{"a damaged key", func(_, keys string) error {
			return os.WriteFile(filepath.Join(keys, "a.pub"), []byte("untrusted comment: x\nRWRai\n"), 0o644)
		}, "cannot use a.pub"},
		{"a secret key", func(_, keys string) error {
			return os.WriteFile(filepath.Join(keys, "a.pub"), []byte("untrusted comment: minisign secret key\nRWRai\n"), 0o644)
		}, "it is a secret key"},
		{"nothing", func(string, string) error { return nil }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			must(t, os.Chmod(root, 0o755))
			keys := filepath.Join(root, KeysDir)
			a := newSecret(t)
			publish(t, a, keys, "a.pub")
			must(t, tt.spoil(root, keys))
			_, err := NewKeyring(Options{Root: root}).Confirm("it", Text("text"), "it.minisig", signed(t, a, "text"))
			if tt.want == "" {
				must(t, err)
				return
			}
			refused(t, err, tt.want)
		})
	}
}

func TestAddAndRemove(t *testing.T) {
	dir := t.TempDir()
	fd, err := sys.OpenRoot(dir)
	must(t, err)
	defer fd.Close()
	a, b := newSecret(t), newSecret(t)
	edit := func() *Edit { return &Edit{Kernel: new(sys.Kernel), Dir: fd, Ring: ringOf(dir)} }
	k, added, err := edit().Add("ops", a.Public())
	if err != nil || !added || k.File != "ops.pub" || k.ID != a.ID() {
		t.Fatalf("Add = %v, %v, %v", &k, added, err)
	}
	got, err := os.ReadFile(filepath.Join(dir, "ops.pub"))
	must(t, err)
	if !bytes.Equal(got, a.Public()) {
		t.Errorf("ops.pub holds %q; want %q", got, a.Public())
	}
	if _, added, err := edit().Add("other", a.Public()); err != nil || added {
		t.Errorf("the same key again: %v, %v; want nothing to do", added, err)
	}
	for name, bad := range map[string][]byte{"ops": b.Public(), "x": withID(t, b, a.ID()), "../y": b.Public(), ".z": b.Public(), "w": []byte("nonsense")} {
		if _, _, err := edit().Add(name, bad); err == nil {
			t.Errorf("Add(%q) accepted it", name)
		}
	}
	if k, _, err := edit().Add("", b.Public()); err != nil || k.File != b.ID().String()+".pub" {
		t.Errorf("Add without a name = %v, %v", &k, err)
	}
	gone, err := edit().Remove(b.ID().String())
	if err != nil || len(gone) != 1 {
		t.Errorf("Remove by ID = %v, %v", gone, err)
	}
	if _, err := edit().Remove("nobody"); err == nil {
		t.Error("Remove of what is not there: no error")
	}
	names, err := os.ReadDir(dir)
	must(t, err)
	if len(names) != 1 {
		t.Errorf("left: %v", names)
	}
}

// Keys and signatures of the minisign program and ours are each other's.
func TestMinisignProgram(t *testing.T) {
	program, err := exec.LookPath("minisign")
	if err != nil {
		t.Skip("needs the program minisign")
	}
	dir := t.TempDir()
	run := func(stdin string, args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), program, args...)
		cmd.Dir, cmd.Stdin = dir, strings.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	write := func(name string, b []byte) { must(t, os.WriteFile(filepath.Join(dir, name), b, 0o600)) }
	write("msg", []byte("text"))
	none := func() (string, error) { return "", errors.New("it asks for a password") }

	// Ours, for minisign.
	s := newSecret(t)
	plain, err := s.Text("")
	must(t, err)
	write("ours.key", plain)
	write("ours.pub", s.Public())
	write("msg.minisig", signed(t, s, "text"))
	if out, err := run("", "-V", "-p", "ours.pub", "-m", "msg"); err != nil || !strings.Contains(out, "by the test") {
		t.Errorf("minisign does not confirm our signature: %v\n%s", err, out)
	}
	if out, err := run("", "-S", "-W", "-s", "ours.key", "-m", "msg", "-t", "theirs"); err != nil {
		t.Errorf("minisign cannot sign with our key: %v\n%s", err, out)
	}
	sig, err := os.ReadFile(filepath.Join(dir, "msg.minisig"))
	must(t, err)
	publish(t, s, filepath.Join(dir, "keys"), "ours.pub")
	who, err := ringOf(filepath.Join(dir, "keys")).Confirm("msg", Text("text"), "msg.minisig", sig)
	must(t, err)
	if who.Comment != "theirs" {
		t.Errorf("the comment is %q", who.Comment)
	}

	// Theirs, for us.
	if out, err := run("", "-G", "-W", "-p", "theirs.pub", "-s", "theirs.key"); err != nil {
		t.Fatalf("minisign -G: %v\n%s", err, out)
	}
	text, err := os.ReadFile(filepath.Join(dir, "theirs.key"))
	must(t, err)
	s, err = ReadSecret(text, none)
	must(t, err)
	pub, err := os.ReadFile(filepath.Join(dir, "theirs.pub"))
	must(t, err)
	if !bytes.Equal(pub, s.Public()) {
		t.Errorf("the public key is %q by minisign, %q by us", pub, s.Public())
	}
	write("msg.minisig", signed(t, s, "text"))
	if out, err := run("", "-V", "-p", "theirs.pub", "-m", "msg"); err != nil {
		t.Errorf("minisign does not confirm our signature with its key: %v\n%s", err, out)
	}
}

// Encrypting takes a gigabyte and seconds, by design.
func TestEncryptedKey(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 1 GiB of memory")
	}
	s := newSecret(t)
	text, err := s.Text("secret")
	must(t, err)
	again, err := ReadSecret(text, func() (string, error) { return "secret", nil })
	must(t, err)
	if !bytes.Equal(signed(t, again, "x"), signed(t, s, "x")) {
		t.Error("another key came out")
	}
	if _, err := ReadSecret(text, func() (string, error) { return "wrong", nil }); err == nil || !strings.Contains(err.Error(), "password is wrong") {
		t.Errorf("with a wrong password: %v", err)
	}
	if program, err := exec.LookPath("minisign"); err == nil {
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, "k"), text, 0o600))
		must(t, os.WriteFile(filepath.Join(dir, "msg"), []byte("text"), 0o600))
		cmd := exec.CommandContext(t.Context(), program, "-S", "-s", "k", "-m", "msg")
		cmd.Dir, cmd.Stdin = dir, strings.NewReader("secret\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("minisign cannot sign with our encrypted key: %v\n%s", err, out)
		}
	}
}

func TestFloor(t *testing.T) {
	now := Instant{Unix: 1_800_000_000, By: "the clock"}
	st := new(State)
	judge := func(name string, seq uint64) error { return st.Judge("it", Head{Name: name, Sequence: seq}, now) }
	must(t, judge("app", 1))
	if !st.Accept(Claim{Head: Head{Name: "app", Sequence: 5}, Signer: 1}, 0) {
		t.Error("Accept tells of no change")
	}
	must(t, judge("app", 5))
	must(t, judge("app", 6))
	must(t, judge("other", 1))
	refused(t, judge("app", 4), `"app" (sequence 4), and "app" (sequence 5) was applied before`)
	refused(t, judge("app", 0), "older than what this root has seen")
	if st.Accept(Claim{Head: Head{Name: "app", Sequence: 5}, Signer: 2}, 0) || st.Floors["app"].Signer != 1 {
		t.Error("the same sequence again has changed the floor")
	}
}

func TestAcceptRevokes(t *testing.T) {
	st := new(State)
	st.Accept(Claim{Head: Head{Name: "app", Sequence: 2, Revokes: []KeyID{1, 2}}, Signer: 2}, 77)
	if len(st.Revoked) != 1 || st.Revoked[0].ID != 1 || st.Revoked[0].Time != 77 {
		t.Errorf("revoked: %v; want key 1 and not the signer", st.Revoked)
	}
}

func TestClock(t *testing.T) {
	at := func(clock, build, seen int64) Instant {
		return Clock{Now: func() time.Time { return time.Unix(clock, 0) }, Build: func() time.Time { return time.Unix(build, 0) }}.At(&State{Time: seen})
	}
	for _, tt := range []struct {
		clock, build, seen, want int64
		by                       string
	}{
		{300, 100, 200, 300, "the clock"},
		{0, 100, 50, 100, "the age of this program"},
		{0, 100, 200, 200, "the newest update"},
	} {
		if got := at(tt.clock, tt.build, tt.seen); got.Unix != tt.want || !strings.HasPrefix(got.By, tt.by) {
			t.Errorf("At(%d, %d, %d) = %v; want %d by %s", tt.clock, tt.build, tt.seen, got, tt.want, tt.by)
		}
	}
	st := &State{Time: 2000}
	refused(t, st.Judge("it", Head{Name: "app", Expires: 1500}, at(0, 100, 2000)), `"app" expired on 1970-01-01 00:25:00 UTC`)
	must(t, st.Judge("it", Head{Name: "app", Expires: 1500}, at(0, 100, 1499)))
	refused(t, st.Judge("it", Head{Name: "app", Expires: 1500}, at(1500, 100, 0)), "by the clock")
}

func TestState(t *testing.T) {
	dir := t.TempDir()
	fd, err := sys.OpenRoot(dir)
	must(t, err)
	defer fd.Close()
	empty, err := ReadState(fd)
	must(t, err)
	empty.Accept(Claim{Head: Head{Name: "a \xc3\xa9", Version: "1", Sequence: 1 << 63, Signed: 9, Revokes: []KeyID{4}}, Signer: 3}, 5)
	must(t, empty.Write(new(sys.Kernel), fd))
	again, err := ReadState(fd)
	must(t, err)
	if diff := cmp.Diff(empty, again); diff != "" {
		t.Errorf("(-written +read):\n%s", diff)
	}
	name := filepath.Join(dir, StateFile)
	text, err := os.ReadFile(name)
	must(t, err)
	// Each changed byte, and each cut, is found: never an empty state instead.
	for i := range text {
		for _, bad := range [][]byte{slices.Concat(text[:i], []byte{text[i] ^ 1}, text[i+1:]), text[:i]} {
			must(t, os.WriteFile(name, bad, 0o600))
			if _, err := ReadState(fd); err == nil {
				t.Fatalf("accepted: %q", bad)
			}
		}
	}
	t.Logf("%d damaged states", 2*len(text))
	_, err = ReadState(fd)
	refused(t, err, "cannot read which updates were seen, .liveupd/trust")
}

func TestComment(t *testing.T) {
	want := Head{Name: "app", Version: "1.0: x", Sequence: 3, Expires: 2000, Signed: 1000, Revokes: []KeyID{1, 2}}
	text, err := want.Comment("update.tar", "free text")
	must(t, err)
	got, err := ParseComment(text)
	must(t, err)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// minisign's own.
	got, err = ParseComment("timestamp:1700000000\tfile:update.tar\thashed")
	must(t, err)
	if diff := cmp.Diff(Head{Signed: 1700000000}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, bad := range []string{"sequence:x", "sequence:1\tsequence:2", "expires:never", "revokes:1", "timestamp:5\texpires:4", "name:" + strings.Repeat("x", 256)} {
		_, err := ParseComment(bad)
		refused(t, err, "its signed comment")
	}
}
