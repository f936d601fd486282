package engine

import (
	"bytes"
	"crypto/rand"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"testing"

	"aead.dev/minisign"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/source/tree"
)

// A signed tree is what was signed, or it is refused and nothing has changed.
func TestSigned(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(t *testing.T, b *bed, keys string)
		is    error
	}{
		{"as it was signed", func(*testing.T, *bed, string) {}, nil},
		{"other content of the same size and time", func(t *testing.T, b *bed, _ string) {
			name := filepath.Join(b.source, "opt/app/file")
			st, err := os.Stat(name)
			if err != nil {
				t.Fatal(err)
			}
			b.write(b.source, "opt/app/file", "evil")
			if err := os.Chtimes(name, st.ModTime(), st.ModTime()); err != nil {
				t.Fatal(err)
			}
		}, change.ErrVerification},
		{"another mode", func(t *testing.T, b *bed, _ string) {
			if err := os.Chmod(filepath.Join(b.source, "opt/app/file"), 0o755|os.ModeSetuid); err != nil {
				t.Fatal(err)
			}
		}, change.ErrVerification},
		{"a file more", func(_ *testing.T, b *bed, _ string) { b.write(b.source, "opt/app/more", "x") }, change.ErrVerification},
		{"a file less", func(t *testing.T, b *bed, _ string) {
			if err := os.Remove(filepath.Join(b.source, "opt/app/file")); err != nil {
				t.Fatal(err)
			}
		}, change.ErrVerification},
		{"another manifest", func(_ *testing.T, b *bed, _ string) {
			b.write(b.source, "liveupd.toml", "owns = [\"/opt\"]\n")
		}, change.ErrVerification},
		{"a key that nobody trusts", func(t *testing.T, _ *bed, keys string) {
			if err := os.Remove(filepath.Join(keys, "ops.pub")); err != nil {
				t.Fatal(err)
			}
		}, change.ErrVerification},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBed(t)
			keys := t.TempDir()
			b.write(b.root, "opt/app/file", "old!")
			b.write(b.source, "opt/app/file", "new!")
			sign(t, b.source, keys)
			tt.spoil(t, b, keys)
			before := readTree(t, b.root)
			// With --allow-unsigned too: what was signed must be what was signed.
			for _, allow := range []bool{true, false} {
				result, err := (&Engine{}).Run(t.Context(), Request{
					Verb: "apply", Root: b.root, Source: "tree:" + b.source, KeysDir: keys, AllowUnsigned: allow,
				}, Events{})
				if !errors.Is(err, tt.is) {
					t.Fatalf("apply = %+v, %v; want %v", result, err, tt.is)
				}
				if tt.is != nil && !maps.Equal(before, readTree(t, b.root)) {
					t.Errorf("a refused update changed the tree")
				}
			}
			left, err := filepath.Glob(filepath.Join(b.root, ".liveupd/tx/*"))
			if err != nil || tt.is != nil && len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
			if tt.is == nil && b.read("opt/app/file") != "new!" {
				t.Error("the signed update was not applied")
			}
		})
	}
}

func TestUnsignedIsRefused(t *testing.T) {
	b := newBed(t)
	b.write(b.source, "opt/app/file", "x")
	_, err := (&Engine{}).Run(t.Context(), Request{Verb: "apply", Root: b.root, Source: "tree:" + b.source, KeysDir: t.TempDir()}, Events{})
	hint, ok := errors.AsType[*change.HintError](err)
	if !errors.Is(err, change.ErrVerification) || !ok || !bytes.Contains([]byte(hint.Hint), []byte("--allow-unsigned")) {
		t.Errorf("apply = %v; want a refusal with a hint", err)
	}
	if b.read("opt/app/file") != "-" {
		t.Error("it was applied")
	}
}

func sign(t *testing.T, dir, keys string) {
	t.Helper()
	public, private, err := minisign.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	text, err := public.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(keys, "ops.pub"), text, 0o644); err != nil {
		t.Fatal(err)
	}
	var manifest bytes.Buffer
	if err := tree.WriteManifest(t.Context(), dir, &manifest); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"liveupd.manifest": manifest.Bytes(), "liveupd.manifest.minisig": minisign.Sign(private, manifest.Bytes()),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
