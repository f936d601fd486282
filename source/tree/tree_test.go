package tree

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"aead.dev/minisign"
	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// put writes files below dir; a name that ends with / is a directory, a content
// that starts with -> a symlink.
func put(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		full := filepath.Join(dir, name)
		if strings.HasSuffix(name, "/") {
			must(t, os.MkdirAll(full, 0o755))
			continue
		}
		must(t, os.MkdirAll(filepath.Dir(full), 0o755))
		if target, ok := strings.CutPrefix(content, "->"); ok {
			must(t, os.Symlink(target, full))
			continue
		}
		must(t, os.WriteFile(full, []byte(content), 0o644))
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// signer is a key pair whose public half lies in a key folder.
type signer struct {
	keys string
	priv minisign.PrivateKey
}

func newSigner(t *testing.T, name string) signer {
	t.Helper()
	pub, priv, err := minisign.GenerateKey(nil)
	must(t, err)
	s := signer{t.TempDir(), priv}
	text, err := pub.MarshalText()
	must(t, err)
	must(t, os.WriteFile(filepath.Join(s.keys, name), text, 0o644))
	return s
}

// sign writes dir's manifest and its signature to path and path.minisig.
func (s signer) sign(t *testing.T, dir, path string) {
	t.Helper()
	var buf bytes.Buffer
	must(t, WriteManifest(t.Context(), dir, &buf))
	must(t, os.WriteFile(path, buf.Bytes(), 0o644))
	s.resign(t, path)
}

func (s signer) resign(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	r := minisign.NewReader(bytes.NewReader(b))
	_, err = r.Read(make([]byte, len(b)+1))
	must(t, err)
	sig := r.SignWithComments(s.priv, "release 7", "by the test")
	must(t, os.WriteFile(path+".minisig", sig, 0o644))
}

func TestOpenRefusesDirectories(t *testing.T) {
	tests := []struct {
		name  string
		files map[string]string
		dir   string // below the temporary directory
		want  string
	}{
		{"missing", nil, "none", "no such file"},
		{"a file", map[string]string{"f": "x"}, "f", "not a directory"},
		{"empty", map[string]string{"d/": ""}, "d", "it is empty"},
		{"only what describes it", map[string]string{"d/liveupd.toml": "name = 'x'"}, "d", "it is empty"},
		{"a live root", map[string]string{"d/.liveupd/": "", "d/usr/lib/x": "x"}, "d", "it holds .liveupd"},
		{"store as a file", map[string]string{"d/.liveupd": "", "d/usr/lib/x": "x"}, "d", "it holds .liveupd"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			top := t.TempDir()
			put(t, top, tt.files)
			tr, err := Open(t.Context(), filepath.Join(top, tt.dir), Options{AllowUnsigned: true})
			if err == nil {
				tr.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Open = %v; want an error with %q", err, tt.want)
			}
		})
	}
}

func TestOpenManifest(t *testing.T) {
	const head = "name = 'app'\nversion = '2'\nsequence = 7\nbootme = true\n"
	full := Manifest{Name: "app", Version: "2", Sequence: 7, Bootme: true}
	tests := []struct {
		name  string
		files map[string]string // beside d/usr/lib/x
		want  Manifest
		err   string
	}{
		{name: "none"},
		{name: "inside", files: map[string]string{"d/liveupd.toml": head}, want: full},
		{name: "beside by name", files: map[string]string{"d.liveupd.toml": head}, want: full},
		{name: "beside", files: map[string]string{"liveupd.toml": head}, want: full},
		{
			name: "beside, for this tree", files: map[string]string{"liveupd.toml": head + "tree = 'd'"},
			want: Manifest{Name: "app", Version: "2", Sequence: 7, Bootme: true, Tree: "d"},
		},
		{name: "beside, for another tree", files: map[string]string{"liveupd.toml": head + "tree = 'other'"}},
		{
			name:  "beside for another, and inside",
			files: map[string]string{"liveupd.toml": "tree = 'other'", "d/liveupd.toml": head}, want: full,
		},
		{
			name: "by name but for another", files: map[string]string{"d.liveupd.toml": "tree = 'other'"},
			err: `describes the tree "other", not "d"`,
		},
		{
			name:  "two",
			files: map[string]string{"d/liveupd.toml": head, "d.liveupd.toml": head}, err: "cannot choose between",
		},
		{
			name:  "two beside",
			files: map[string]string{"liveupd.toml": head, "d.liveupd.toml": head}, err: "cannot choose between",
		},
		{name: "unknown key", files: map[string]string{"d/liveupd.toml": "name = 'x'\nown = ['/usr']\n"}, err: `line 2: unknown key "own"`},
		{name: "not TOML", files: map[string]string{"d/liveupd.toml": "name = 'x'\n[[["}, err: "line 2"},
		{name: "wrong type", files: map[string]string{"d/liveupd.toml": "sequence = 'x'"}, err: "line 1"},
		{name: "negative sequence", files: map[string]string{"d/liveupd.toml": "sequence = -1"}, err: "line 1"},
		{name: "control characters", files: map[string]string{"d/liveupd.toml": `name = "a\u001b[2J"`}, err: "control characters"},
		{name: "a symlink", files: map[string]string{"d/liveupd.toml": "->../x", "x": head}, err: "it is a symlink"},
		{name: "a directory", files: map[string]string{"liveupd.toml/": ""}, err: "it is a directory"},
		{
			name: "owns", files: map[string]string{"d/liveupd.toml": `owns = ["/usr/lib/app"]` + "\n" + `never = ["/usr/lib/app/data"]`},
			want: Manifest{Owns: []string{"/usr/lib/app"}, Never: []string{"/usr/lib/app/data"}},
		},
		{name: "owns nothing", files: map[string]string{"d/liveupd.toml": `owns = []`}, want: Manifest{Owns: []string{}}},
		{name: "owns a relative path", files: map[string]string{"d/liveupd.toml": `owns = ["usr/lib/app"]`}, err: `"usr/lib/app" is not absolute`},
		{name: "owns everything", files: map[string]string{"d/liveupd.toml": `owns = ["/"]`}, err: `"/" cannot be named`},
		{name: "owns dots", files: map[string]string{"d/liveupd.toml": `owns = ["/usr/../etc"]`}, err: "not a clean path"},
		{name: "owns with a slash", files: map[string]string{"d/liveupd.toml": `owns = ["/usr/lib/"]`}, err: "not a clean path"},
		{name: "owns the store", files: map[string]string{"d/liveupd.toml": `owns = ["/.liveupd"]`}, err: "liveupd's own"},
		{name: "owns in a store", files: map[string]string{"d/liveupd.toml": `owns = ["/var/.liveupd/tx"]`}, err: "liveupd's own"},
		{name: "never a relative path", files: map[string]string{"d/liveupd.toml": `never = ["x"]`}, err: `never: "x" is not absolute`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			top := t.TempDir()
			put(t, top, map[string]string{"d/usr/lib/x": "x"})
			put(t, top, tt.files)
			tr, err := Open(t.Context(), filepath.Join(top, "d"), Options{AllowUnsigned: true, Keys: ring(t.TempDir())})
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("Open = %v; want an error with %q", err, tt.err)
				}
				return
			}
			must(t, err)
			defer tr.Close()
			if diff := cmp.Diff(tt.want, tr.Manifest()); diff != "" {
				t.Errorf("Manifest() (-want +got):\n%s", diff)
			}
			if tr.Signer() != nil {
				t.Errorf("Signer() = %v; want none", tr.Signer())
			}
			if node, signed := tr.Claim("/usr/lib/x"); node != nil || signed {
				t.Errorf("Claim of an unsigned tree = %v, %v; want nil, false", node, signed)
			}
		})
	}
}

// A file beside counts only from root, the caller or the owner of the tree: /tmp is
// everybody's.
func TestOpenBesideOfAnother(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it gives a file to another user")
	}
	top := t.TempDir()
	put(t, top, map[string]string{"d/usr/lib/x": "x", "liveupd.toml": `owns = ["/usr"]`})
	must(t, os.Chown(filepath.Join(top, "liveupd.toml"), 12345, 12345))
	_, err := Open(t.Context(), filepath.Join(top, "d"), Options{AllowUnsigned: true})
	if err == nil || !strings.Contains(err.Error(), "belongs to user 12345") {
		t.Fatalf("Open = %v; want a refusal of the stranger's file", err)
	}
	must(t, os.Chown(filepath.Join(top, "d"), 12345, 12345))
	tr, err := Open(t.Context(), filepath.Join(top, "d"), Options{AllowUnsigned: true})
	must(t, err) // the tree is the stranger's own
	must(t, tr.Close())
}

func TestWhole(t *testing.T) {
	tests := []struct {
		name  string
		files map[string]string
		want  bool
	}{
		{"usr and os-release", map[string]string{"usr/lib/os-release": "ID=x"}, true},
		{"os-release in etc", map[string]string{"usr/bin/x": "", "etc/os-release": "ID=x"}, true},
		{"etc links to usr", map[string]string{"usr/lib/os-release": "ID=x", "etc/os-release": "->../usr/lib/os-release"}, true},
		{"absolute link inside", map[string]string{"usr/lib/os": "ID=x", "etc/os-release": "->/usr/lib/os"}, true},
		{"no usr", map[string]string{"etc/os-release": "ID=x"}, false},
		{"no os-release", map[string]string{"usr/lib/x": ""}, false},
		{"dangling os-release", map[string]string{"usr/lib/x": "", "etc/os-release": "->../usr/lib/os-release"}, false},
		{"os-release leads to the host's", map[string]string{"usr/lib/x": "", "etc/os-release": "->/etc/hostname"}, false},
		{"empty os-release", map[string]string{"usr/lib/os-release": ""}, false},
		{"os-release is a directory", map[string]string{"usr/lib/os-release/": ""}, false},
		{"usr is a link", map[string]string{"usr": "->real", "real/lib/os-release": "ID=x"}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			top := t.TempDir()
			put(t, top, tt.files)
			tr, err := Open(t.Context(), top, Options{AllowUnsigned: true, Keys: ring(t.TempDir())})
			must(t, err)
			defer tr.Close()
			if got := tr.Whole(); got != tt.want {
				t.Errorf("Whole() = %v; want %v", got, tt.want)
			}
		})
	}
}

func TestUnsigned(t *testing.T) {
	top := t.TempDir()
	put(t, top, map[string]string{"d/usr/lib/x": "x"})
	dir := filepath.Join(top, "d")
	_, err := Open(t.Context(), dir, Options{Keys: ring(t.TempDir())})
	if !errors.Is(err, change.ErrVerification) {
		t.Fatalf("Open = %v; want ErrVerification", err)
	}
	hint, ok := errors.AsType[*change.HintError](err)
	if !ok || !strings.Contains(hint.Hint, "--allow-unsigned") {
		t.Errorf("the hint of %v does not name --allow-unsigned", err)
	}

	// A manifest that nobody signed is not believed, and not used.
	var buf bytes.Buffer
	must(t, WriteManifest(t.Context(), dir, &buf))
	must(t, os.WriteFile(filepath.Join(dir, "liveupd.manifest"), buf.Bytes(), 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "usr/lib/x"), []byte("y"), 0o644))
	if _, err = Open(t.Context(), dir, Options{Keys: ring(t.TempDir())}); !errors.Is(err, change.ErrVerification) {
		t.Errorf("Open with a manifest without signature = %v; want ErrVerification", err)
	}
	tr, err := Open(t.Context(), dir, Options{AllowUnsigned: true, Keys: ring(t.TempDir())})
	must(t, err)
	defer tr.Close()
	if w := tr.Warnings(); len(w) != 1 || !strings.Contains(w[0], "no signature") {
		t.Errorf("Warnings() = %q; want one about the missing signature", w)
	}
	if err := errors.Join(tr.Check("/usr/lib/x", &change.Node{}), tr.Finish()); err != nil {
		t.Errorf("an unsigned tree is checked: %v", err)
	}
}

// node reads what the walk of an update would read of p.
func node(t *testing.T, tr *Tree, p string) *change.Node {
	t.Helper()
	n, err := sys.Lstat(tr.Root(), p[1:])
	must(t, err)
	n.Xattrs, err = sys.Xattrs(tr.Root(), p[1:])
	must(t, err)
	if n.Type == change.Symlink {
		n.Target, err = sys.Readlink(tr.Root(), p[1:])
		must(t, err)
	}
	return n
}
