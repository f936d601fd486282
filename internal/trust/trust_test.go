package trust

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"aead.dev/minisign"

	"github.com/liveupd/liveupd/change"
)

type pair struct {
	public  minisign.PublicKey
	private minisign.PrivateKey
}

func newPair(t testing.TB) pair {
	t.Helper()
	public, private, err := minisign.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return pair{public, private}
}

func (p pair) text(t testing.TB) []byte {
	t.Helper()
	b, err := p.public.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func ring(t testing.TB, dir string) *Ring {
	t.Helper()
	r, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func add(t testing.TB, dir, name string, p pair) Key {
	t.Helper()
	k, err := ring(t, dir).Add(name, p.text(t))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// prehashed signs as the program minisign does.
func prehashed(p minisign.PrivateKey, message []byte) []byte {
	in := minisign.NewReader(bytes.NewReader(message))
	_, _ = io.Copy(io.Discard, in) // from memory
	return in.Sign(p)
}

var message = []byte("what is signed")

func refused(t *testing.T, err error, words ...string) {
	t.Helper()
	if !errors.Is(err, change.ErrVerification) {
		t.Errorf("error %v; want ErrVerification", err)
	}
	for _, w := range words {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("error %v; want %q in it", err, w)
		}
	}
}

// A rotation: the new key is added, the old one signs on, then is revoked.
func TestRotationAndRevocation(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	old, fresh := newPair(t), newPair(t)
	sigOld, sigFresh := prehashed(old.private, message), prehashed(fresh.private, message)
	_, err := ring(t, dir).Verify("m", message, sigOld, "m.minisig")
	refused(t, err, "no key in", "m")
	oldKey := add(t, dir, "old", old)
	if s, err := ring(t, dir).Verify("m", message, sigOld, "m.minisig"); err != nil || s.Name != "old" || s.ID != oldKey.ID {
		t.Errorf("Verify = %v, %v", s, err)
	}
	_, err = ring(t, dir).Verify("m", message, sigFresh, "m.minisig")
	refused(t, err)
	add(t, dir, "fresh", fresh)
	for _, sig := range [][]byte{sigOld, sigFresh} {
		if _, err := ring(t, dir).VerifyReader("m", bytes.NewReader(message), sig, "m.minisig"); err != nil {
			t.Error(err)
		}
	}
	if _, err := ring(t, dir).Revoke("old", "lost\nlaptop", time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)); err != nil {
		t.Fatal(err)
	}
	_, err = ring(t, dir).Verify("m", message, sigOld, "m.minisig")
	refused(t, err, "old.pub is revoked: 2026-11-21 lost laptop")
	if hint, ok := errors.AsType[*change.HintError](err); !ok || !strings.Contains(hint.Hint, "another key") {
		t.Errorf("no hint in %v", err)
	}
	if _, err := ring(t, dir).Verify("m", message, sigFresh, "m.minisig"); err != nil {
		t.Error(err)
	}
	// It does not come back, by its file or by add.
	if _, err := ring(t, dir).Remove("old"); err != nil {
		t.Fatal(err)
	}
	if _, err := ring(t, dir).Add("again", old.text(t)); err == nil || !strings.Contains(err.Error(), "is revoked: 2026-11-21") {
		t.Errorf("a revoked key is added: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "smuggled.pub"), old.text(t), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = ring(t, dir).Verify("m", message, sigOld, "m.minisig")
	refused(t, err, "smuggled.pub is revoked")
	// Twice is once; one that was never here can be revoked, too.
	other := newPair(t)
	for range 2 {
		if _, err := ring(t, dir).Revoke(IDText(other.public.ID()), "", time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, RevokedName))
	if err != nil || bytes.Count(b, []byte("\n")) != 2 {
		t.Errorf("the list is %q, %v", b, err)
	}
}

func TestTampered(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	p := newPair(t)
	add(t, dir, "ops", p)
	sig := prehashed(p.private, message)
	r := ring(t, dir)
	// The old kind is good for what is read whole.
	whole := minisign.Sign(p.private, message)
	if _, err := r.Verify("m", message, whole, "m.minisig"); err != nil {
		t.Error(err)
	}
	_, oldErr := r.VerifyReader("m", bytes.NewReader(message), whole, "m.minisig")
	refused(t, oldErr, "of the old kind")
	_, err := r.Verify("m", []byte("something else"), sig, "m.minisig")
	refused(t, err, "ops.pub does not confirm it")
	_, err = r.VerifyReader("m", strings.NewReader("something else"), sig, "m.minisig")
	refused(t, err, "ops.pub does not confirm it")
	_, err = r.Verify("m", message, []byte("nonsense"), "m.minisig")
	refused(t, err, "cannot read the signature m.minisig")
	_, err = r.Verify("m", message, bytes.Replace(sig, []byte("timestamp"), []byte("TIMESTAMP"), 1), "m.minisig")
	refused(t, err)
}

// Who can write a key can sign.
func TestOthersCanWrite(t *testing.T) {
	p := newPair(t)
	sig := minisign.Sign(p.private, message)
	for _, name := range []string{"", "ops.pub", RevokedName} {
		dir := filepath.Join(t.TempDir(), "keys")
		add(t, dir, "ops", p)
		if err := os.WriteFile(filepath.Join(dir, RevokedName), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(dir, name), 0o777); err != nil {
			t.Fatal(err)
		}
		r, err := Open(dir)
		if err == nil {
			_, err = r.Verify("m", message, sig, "m.minisig")
		}
		refused(t, err, filepath.Join(dir, name), "may write to it")
	}
}

func TestDamagedFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	p := newPair(t)
	add(t, dir, "ops", p)
	if err := os.WriteFile(filepath.Join(dir, "bad.pub"), []byte("no key"), 0o644); err != nil {
		t.Fatal(err)
	}
	// A file that is no key keeps no good one from being used.
	if _, err := ring(t, dir).Verify("m", message, minisign.Sign(p.private, message), "s"); err != nil {
		t.Error(err)
	}
	_, err := ring(t, dir).Verify("m", message, minisign.Sign(newPair(t).private, message), "s")
	refused(t, err, "cannot use bad.pub")
	// A line of the revoked ones that cannot be read might be the one that matters.
	if err := os.WriteFile(filepath.Join(dir, RevokedName), []byte("# fine\n\nDEADBEEF old\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = Open(dir)
	refused(t, err, "line 3")
}

func TestAddRefuses(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	p := newPair(t)
	add(t, dir, "ops", p)
	for name, text := range map[string][]byte{
		"ops": newPair(t).text(t), "same": p.text(t), "../x": newPair(t).text(t), "": newPair(t).text(t), "no": []byte("no key"), ".x": newPair(t).text(t),
	} {
		if _, err := ring(t, dir).Add(name, text); err == nil {
			t.Errorf("%q was added", name)
		}
	}
	if _, err := ring(t, dir).Remove("nobody"); err == nil {
		t.Error("a key that is not there was removed")
	}
	if k, err := ring(t, dir).Find(IDText(p.public.ID())); err != nil || k.Name != "ops" {
		t.Errorf("Find by ID = %+v, %v", k, err)
	}
}

func FuzzSignature(f *testing.F) {
	p := newPair(f)
	dir := filepath.Join(f.TempDir(), "keys")
	add(f, dir, "ops", p)
	r := ring(f, dir)
	good := minisign.Sign(p.private, message)
	f.Add(good)
	f.Fuzz(func(t *testing.T, sig []byte) {
		s, err := r.Verify("m", message, sig, "m.minisig")
		if err == nil && s.ID != p.public.ID() {
			t.Fatalf("verified by %v", s)
		}
		if _, err := r.Verify("m", []byte("another"), sig, "m.minisig"); err == nil {
			t.Fatal("a signature of something else was accepted")
		}
	})
}

func FuzzRevoked(f *testing.F) {
	f.Add([]byte("0123456789ABCDEF 2026-01-01 lost\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, RevokedName), b, 0o644); err != nil {
			t.Fatal(err)
		}
		r, err := Open(dir)
		if err != nil {
			return
		}
		for id, why := range r.revoked {
			if why == "" {
				t.Fatalf("%s is revoked without a word", IDText(id))
			}
		}
	})
}
