package tree

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/internal/trust"
)

func ring(dir string) *trust.Keyring { return trust.NewKeyring(trust.Options{Dir: dir}) }

const strange = "usr/lib/a b\\c\n\xff,=é"

var signedFiles = map[string]string{
	"usr/lib/x":        "content",
	"usr/lib/x-y":      "sorts between x and x/",
	"usr/lib/x.d/a":    "a",
	"usr/bin/tool":     "->../lib/x",
	"usr/share/empty/": "",
	strange:            "bytes",
	"liveupd.toml":     "name = 'app'\nversion = '2'\nsequence = 7\n",
}

// checkAll walks the tree as a diff does: claims and checks all that is there.
func checkAll(t *testing.T, tr *Tree) error {
	t.Helper()
	err := filepath.WalkDir(tr.Dir(), func(full string, _ fs.DirEntry, err error) error {
		p := strings.TrimPrefix(full, tr.Dir())
		if err != nil || p == "" || tr.Skip(p) {
			return err
		}
		return tr.Check(p, node(t, tr, p))
	})
	if err != nil {
		return err
	}
	return tr.Finish()
}

func TestSigned(t *testing.T) {
	for _, where := range []string{"d/liveupd.manifest", "d.liveupd.manifest", "liveupd.manifest"} {
		t.Run(where, func(t *testing.T) {
			top := t.TempDir()
			dir := filepath.Join(top, "d")
			put(t, dir, signedFiles)
			s := newSigner(t, "release.pub")
			must(t, os.WriteFile(filepath.Join(s.keys, "a-broken.pub"), []byte("nonsense"), 0o644))
			s.sign(t, dir, filepath.Join(top, where))
			tr, err := Open(t.Context(), dir, Options{Keys: ring(s.keys)})
			must(t, err)
			defer tr.Close()
			if diff := cmp.Diff(Manifest{Name: "app", Version: "2", Sequence: 7}, tr.Manifest()); diff != "" {
				t.Errorf("Manifest() (-want +got):\n%s", diff)
			}
			if who := tr.Signer(); who == nil || who.File != "release.pub" || who.Comment != "release 7" || who.ID != trust.KeyID(s.priv.ID()) {
				t.Errorf("Signer() = %v", who)
			}
			must(t, checkAll(t, tr))
			want := &change.Node{Type: change.Symlink, Mode: 0o777, UID: tr.owner, Target: "../lib/x"}
			want.GID = node(t, tr, "/usr/bin/tool").GID
			got, signed := tr.Claim("/usr/bin/tool")
			if diff := cmp.Diff(want, got); diff != "" || !signed {
				t.Errorf("Claim, signed %v (-want +got):\n%s", signed, diff)
			}
			if got, signed := tr.Claim("/usr/lib/none"); got != nil || !signed {
				t.Errorf("Claim of what is not listed = %v, %v; want nil, true", got, signed)
			}
			if got, signed := tr.Claim("/"); !got.IsDir() || !signed {
				t.Errorf("Claim of the root = %v, %v; want the directory", got, signed)
			}
			if got, _ := tr.Claim("/" + strange); got == nil || got.Size != 5 {
				t.Errorf("Claim of a path that is not text = %v; want its node", got)
			}
		})
	}
}

// Whatever differs from what was signed is refused, and the path is named.
func TestSignedTampered(t *testing.T) {
	tests := []struct {
		name   string
		tamper func(t *testing.T, dir string)
		want   string
		open   bool // Open itself refuses
	}{
		{"size", func(t *testing.T, dir string) { put(t, dir, map[string]string{"usr/lib/x": "more content"}) }, "/usr/lib/x: its size is 12", false},
		{"mode", func(t *testing.T, dir string) {
			must(t, os.Chmod(filepath.Join(dir, "usr/lib/x"), 0o755|os.ModeSetuid))
		}, "/usr/lib/x: its mode is 4755", false},
		{"directory mode", func(t *testing.T, dir string) { must(t, os.Chmod(filepath.Join(dir, "usr/share"), 0o777)) }, "/usr/share: its mode is 0777", false},
		{"target", func(t *testing.T, dir string) {
			must(t, os.Remove(filepath.Join(dir, "usr/bin/tool")))
			put(t, dir, map[string]string{"usr/bin/tool": "->/bin/sh"})
		}, "/usr/bin/tool: it points to /bin/sh", false},
		{"type", func(t *testing.T, dir string) {
			must(t, os.Remove(filepath.Join(dir, "usr/lib/x")))
			put(t, dir, map[string]string{"usr/lib/x": "->/etc/shadow"})
		}, "/usr/lib/x: it is a symlink", false},
		{"addition", func(t *testing.T, dir string) { put(t, dir, map[string]string{"usr/lib/evil": ""}) }, "/usr/lib/evil: it is not in the signed manifest", false},
		{"addition in a new folder", func(t *testing.T, dir string) { put(t, dir, map[string]string{"etc/cron.d/evil": ""}) }, "/etc: it is not in the signed manifest", false},
		{"removal", func(t *testing.T, dir string) { must(t, os.Remove(filepath.Join(dir, "usr/lib/x-y"))) }, "/usr/lib/x-y: the signed manifest lists it, and it is missing", false},
		{"parent becomes a file", func(t *testing.T, dir string) {
			must(t, os.RemoveAll(filepath.Join(dir, "usr/lib/x.d")))
			put(t, dir, map[string]string{"usr/lib/x.d": ""})
		}, "/usr/lib/x.d: it is a file", false},
		{"toml changed", func(t *testing.T, dir string) {
			put(t, dir, map[string]string{"liveupd.toml": "name = 'app'\nversion = '2'\nsequence = 7\nowns = ['/etc/app']\n"})
		}, "liveupd.toml differs from the signed manifest", true},
		{"toml removed", func(t *testing.T, dir string) { must(t, os.Remove(filepath.Join(dir, "liveupd.toml"))) }, "liveupd.toml is part of the signed manifest and is missing", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			put(t, dir, signedFiles)
			s := newSigner(t, "k.pub")
			s.sign(t, dir, filepath.Join(dir, "liveupd.manifest"))
			tt.tamper(t, dir)
			tr, err := Open(t.Context(), dir, Options{Keys: ring(s.keys), AllowUnsigned: true})
			if err == nil {
				defer tr.Close()
				if tt.open {
					t.Fatal("Open accepted the tree")
				}
				err = checkAll(t, tr)
			}
			if !errors.Is(err, change.ErrVerification) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v; want ErrVerification with %q", err, tt.want)
			}
		})
	}
}

// Content of the same size is found by its digest, which travels in the claim.
func TestSignedContent(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, signedFiles)
	s := newSigner(t, "k.pub")
	s.sign(t, dir, filepath.Join(dir, "liveupd.manifest"))
	tr, err := Open(t.Context(), dir, Options{Keys: ring(s.keys)})
	must(t, err)
	defer tr.Close()
	got := node(t, tr, "/usr/lib/x")
	got.Digest = change.Digest{1}
	if err := tr.Check("/usr/lib/x", got); !errors.Is(err, change.ErrVerification) {
		t.Errorf("Check of another content = %v; want ErrVerification", err)
	}
	claim, _ := tr.Claim("/usr/lib/x")
	got.Digest = claim.Digest
	must(t, tr.Check("/usr/lib/x", got))
	got.Xattrs = map[string][]byte{"security.selinux": []byte("label")}
	must(t, tr.Check("/usr/lib/x", got))
	got.Xattrs["security.capability"] = []byte("all")
	if err := tr.Check("/usr/lib/x", got); !errors.Is(err, change.ErrVerification) {
		t.Errorf("Check of another capability = %v; want ErrVerification", err)
	}
}

func TestSignatureRefused(t *testing.T) {
	tests := []struct {
		name string
		do   func(t *testing.T, s signer, dir string) (keys string)
		want string
	}{
		{"no key folder", func(_ *testing.T, _ signer, dir string) string { return filepath.Join(dir, "none") }, "no key in"},
		{"other keys only", func(t *testing.T, _ signer, _ string) string { return newSigner(t, "k.pub").keys }, "no key in"},
		{"key not named .pub", func(t *testing.T, s signer, _ string) string {
			must(t, os.Rename(filepath.Join(s.keys, "k.pub"), filepath.Join(s.keys, "k.pub.off")))
			return s.keys
		}, "no key in"},
		{"manifest changed", func(t *testing.T, s signer, dir string) string {
			name := filepath.Join(dir, "liveupd.manifest")
			b, err := os.ReadFile(name)
			must(t, err)
			must(t, os.WriteFile(name, bytes.Replace(b, []byte("0644"), []byte("0666"), 1), 0o644))
			return s.keys
		}, "k.pub does not confirm it"},
		{"trusted comment changed", func(t *testing.T, s signer, dir string) string {
			name := filepath.Join(dir, "liveupd.manifest.minisig")
			b, err := os.ReadFile(name)
			must(t, err)
			must(t, os.WriteFile(name, bytes.Replace(b, []byte("release 7"), []byte("release 8"), 1), 0o644))
			return s.keys
		}, "k.pub does not confirm it"},
		{"signature is garbage", func(t *testing.T, s signer, dir string) string {
			must(t, os.WriteFile(filepath.Join(dir, "liveupd.manifest.minisig"), []byte("x\ny\nz\n"), 0o644))
			return s.keys
		}, "cannot read the signature"},
		{"signature without manifest", func(t *testing.T, s signer, dir string) string {
			must(t, os.Remove(filepath.Join(dir, "liveupd.manifest")))
			return s.keys
		}, "there is a signature and no liveupd.manifest"},
		{"signature elsewhere", func(t *testing.T, s signer, dir string) string {
			must(t, os.Rename(filepath.Join(dir, "liveupd.manifest.minisig"), dir+".liveupd.manifest.minisig"))
			return s.keys
		}, "its signature stands elsewhere"},
		{"signed, but no manifest", func(t *testing.T, s signer, dir string) string {
			name := filepath.Join(dir, "liveupd.manifest")
			must(t, os.WriteFile(name, []byte("hello\n"), 0o644))
			s.resign(t, name)
			return s.keys
		}, `want "liveupd-manifest 1"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "d")
			put(t, dir, signedFiles)
			s := newSigner(t, "k.pub")
			s.sign(t, dir, filepath.Join(dir, "liveupd.manifest"))
			keys := tt.do(t, s, dir)
			// A wrong signature is refused where unsigned trees are allowed, too.
			tr, err := Open(t.Context(), dir, Options{Keys: ring(keys), AllowUnsigned: true})
			if err == nil {
				tr.Close()
			}
			if !errors.Is(err, change.ErrVerification) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Open = %v; want ErrVerification with %q", err, tt.want)
			}
		})
	}
}

// What the walk leaves out because nothing may be taken there does not count as missing.
func TestFinishUnwalked(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, signedFiles)
	s := newSigner(t, "k.pub")
	s.sign(t, dir, filepath.Join(dir, "liveupd.manifest"))
	tr, err := Open(t.Context(), dir, Options{Keys: ring(s.keys)})
	must(t, err)
	defer tr.Close()
	must(t, tr.Finish())
	must(t, os.Remove(filepath.Join(dir, "usr/lib/x-y")))
	if err := tr.Finish(); !errors.Is(err, change.ErrVerification) {
		t.Errorf("Finish with a path gone = %v; want ErrVerification", err)
	}
}

// Types, owners and attributes that only root can make.
func TestWriteManifestSpecial(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes devices and sets capabilities")
	}
	dir := t.TempDir()
	put(t, dir, map[string]string{"usr/bin/ping": "elf", "dev/": ""})
	must(t, syscall.Mknod(filepath.Join(dir, "dev/null"), syscall.S_IFCHR|0o666, 1<<8|3))
	must(t, syscall.Mknod(filepath.Join(dir, "dev/fifo"), syscall.S_IFIFO|0o600, 0))
	capability := []byte{1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	must(t, os.Chown(filepath.Join(dir, "usr/bin/ping"), 7, 8))
	k := new(sys.Kernel)
	root, err := sys.OpenRoot(dir)
	must(t, err)
	defer root.Close()
	must(t, k.SetXattr(root, "usr/bin/ping", "security.capability", capability))
	must(t, k.SetXattr(root, "usr/bin/ping", "user.a,b=c", nil))
	must(t, k.SetXattr(root, "usr/bin/ping", "security.selinux", []byte("x")))
	s := newSigner(t, "k.pub")
	s.sign(t, dir, filepath.Join(dir, "liveupd.manifest"))
	tr, err := Open(t.Context(), dir, Options{Keys: ring(s.keys)})
	must(t, err)
	defer tr.Close()
	must(t, checkAll(t, tr))
	got, _ := tr.Claim("/usr/bin/ping")
	if got.UID != 7 || got.GID != 8 || len(got.Xattrs) != 2 || !bytes.Equal(got.Xattrs["security.capability"], capability) {
		t.Errorf("Claim = %+v; want owner 7:8, two attributes", got)
	}
	if got, _ := tr.Claim("/dev/null"); got.Type != change.CharDevice || got.Rdev != 1<<8|3 {
		t.Errorf("Claim of a device = %+v", got)
	}
	must(t, k.RemoveXattr(root, "usr/bin/ping", "security.capability"))
	if err := tr.Check("/usr/bin/ping", node(t, tr, "/usr/bin/ping")); !errors.Is(err, change.ErrVerification) {
		t.Errorf("Check without the capability = %v; want ErrVerification", err)
	}
}

// The real minisign program's signatures are accepted, prehashed and not.
func TestMinisignProgram(t *testing.T) {
	program, err := exec.LookPath("minisign")
	if err != nil {
		t.Skip("needs the program minisign")
	}
	for _, flag := range []string{"-H", "-l"} {
		dir, keys := t.TempDir(), t.TempDir()
		put(t, dir, signedFiles)
		newSigner(t, "k.pub").sign(t, dir, filepath.Join(dir, "liveupd.manifest"))
		must(t, os.Remove(filepath.Join(dir, "liveupd.manifest.minisig")))
		run := func(args ...string) {
			out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput()
			if err != nil {
				t.Fatalf("minisign %v: %v\n%s", args, err, out)
			}
		}
		run("-G", "-W", "-p", filepath.Join(keys, "k.pub"), "-s", filepath.Join(keys, "k.sec"))
		run("-S", flag, "-s", filepath.Join(keys, "k.sec"), "-t", "by hand", "-m", filepath.Join(dir, "liveupd.manifest"))
		tr, err := Open(t.Context(), dir, Options{Keys: ring(keys)})
		must(t, err)
		if tr.Signer().Comment != "by hand" {
			t.Errorf("the comment is %q", tr.Signer().Comment)
		}
		must(t, checkAll(t, tr))
		must(t, tr.Close())
	}
}
