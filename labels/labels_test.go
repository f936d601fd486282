package labels

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

func load(t *testing.T, files map[string]string) (*Rules, error) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		name = filepath.Join(dir, "etc/selinux", name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	root, err := sys.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	return Load(root)
}

const base = "p/contexts/files/file_contexts"

func TestLookup(t *testing.T) {
	r, err := load(t, map[string]string{
		"config": "# which one\nSELINUX=enforcing\nSELINUXTYPE=p\n",
		base: `# a comment
/.*	u:r:default_t:s0
/etc(/.*)?	u:r:etc_t:s0
/etc/exact	--	u:r:exact_t:s0
/etc/[^/]*	u:r:late_t:s0
/etc/[^/]*/deep	-d	u:r:deepdir_t:s0
/usr/bin/[^/]*	-l	u:r:binlink_t:s0
/usr/b(in|ox)/a?b+	u:r:ab_t:s0
/proc/.*	<<none>>
/dotted\.name	u:r:dotted_t:s0
/alone|/or	u:r:or_t:s0
`,
		base + ".homedirs":              "/home/[^/]+/.+\tu:r:home_t:s0\n",
		base + ".local":                 "/etc/mine(/.*)?\tu:r:mine_t:s0\n",
		base + ".subs":                  "/data/www /www\n",
		base + ".subs_dist":             "/www /etc\n/other /\n",
		"p/contexts/customizable_types": "chosen_t\n",
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		path string
		typ  change.Type
		want string
	}{
		{"/x", change.Regular, "default_t"},
		{"/etc", change.Directory, "etc_t"},
		{"/etcetera", change.Directory, "default_t"},
		{"/etc/exact", change.Regular, "exact_t"}, // without a metacharacter, though a later rule fits
		{"/etc/exact", change.Directory, "late_t"},
		{"/etc/a/deep", change.Directory, "deepdir_t"},
		{"/etc/a/deep", change.Regular, "etc_t"},
		{"/etc/mine", change.Directory, "mine_t"},
		{"/etc/mine/x\ny", change.Regular, "mine_t"},
		{"/usr/bin/sh", change.Symlink, "binlink_t"},
		{"/usr/bin/sh", change.Regular, "default_t"},
		{"/usr/box/bb", change.Regular, "ab_t"},
		{"/usr/bin/ab", change.Regular, "ab_t"},
		{"/proc/1", change.Directory, ""},
		{"/dotted.name", change.Regular, "dotted_t"},
		{"/dottedxname", change.Regular, "default_t"},
		{"/or", change.Regular, "or_t"},
		{"/home/a/b", change.Regular, "home_t"},
		{"/home/a/\xff", change.Regular, "home_t"},
		{"/data/www/x/deep", change.Directory, "deepdir_t"}, // both lists of aliases
		{"/data/wwwx", change.Directory, "default_t"},
		{"/other/etc/exact", change.Regular, "exact_t"},
	} {
		got, err := r.Lookup(tt.path, tt.typ)
		if err != nil {
			t.Fatal(err)
		}
		if contextType([]byte(got)) != tt.want {
			t.Errorf("Lookup(%q, %s) = %q; want %q", tt.path, tt.typ, got, tt.want)
		}
	}
	if got, err := r.Label("/etc/exact", change.Regular, []byte("u:r:old_t:s0\x00")); string(got) != "u:r:exact_t:s0\x00" || err != nil {
		t.Errorf("Label = %q, %v", got, err)
	}
	if got, err := r.Label("/etc/exact", change.Regular, []byte("u:r:chosen_t:s0\x00")); string(got) != "u:r:chosen_t:s0\x00" || err != nil {
		t.Errorf("Label of a customized object = %q, %v", got, err)
	}
	if got, err := r.Label("/proc/x", change.Regular, nil); got != nil || err != nil {
		t.Errorf("Label of what the rules leave alone = %q, %v", got, err)
	}
}

func TestRootsWithoutRules(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"nothing":          {},
		"no policy":        {"config": "SELINUX=disabled\n"},
		"an absent policy": {"config": "SELINUXTYPE=p\n"},
	} {
		if r, err := load(t, files); r != nil || err != nil {
			t.Errorf("%s: Load = %v, %v; want none", name, r, err)
		}
	}
}

func TestDamagedRules(t *testing.T) {
	for name, tt := range map[string]struct{ config, rules, text string }{
		"a name that leads out": {"SELINUXTYPE=../x\n", "", "SELINUXTYPE"},
		"a strange type":        {"SELINUXTYPE=p\n", "/a\t-x\tu:r:t:s0\n", "line 1"},
		"a word alone":          {"SELINUXTYPE=p\n", "#\n/a\n", "line 2"},
	} {
		_, err := load(t, map[string]string{"config": tt.config, base: tt.rules})
		if err == nil || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: error %v; want one with %q", name, err, tt.text)
		}
	}
	r, err := load(t, map[string]string{"config": "SELINUXTYPE=p\n", base: "/a(?=b).*\tu:r:t:s0\n/z\tu:r:z_t:s0\n"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Lookup("/ab", change.Regular); err == nil || !strings.Contains(err.Error(), "line 1") {
		t.Errorf("a rule that Go has no words for: %v", err)
	}
	if got, err := r.Lookup("/z", change.Regular); err != nil || got == "" {
		t.Errorf("another path: %q, %v", got, err)
	}
}

// The same answers as libselinux gives, for each path of this machine's system
// folders, of every type, by Debian's policy.
func TestAgainstLibselinux(t *testing.T) {
	program, err := exec.LookPath("matchpathcon")
	if err != nil {
		t.Skip("no matchpathcon: ", err)
	}
	const contexts = "/etc/selinux/default/contexts/files/file_contexts"
	if _, err := os.Stat(contexts); err != nil {
		t.Skip("no policy: ", err)
	}
	root, err := sys.OpenRoot("/")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	r, err := Load(root)
	if err != nil || r == nil {
		t.Fatalf("Load = %v, %v", r, err)
	}
	paths := map[change.Type][]string{}
	limit := 1500
	if testing.Short() {
		limit = 200
	}
	add := func(p string, typ change.Type) {
		// matchpathcon reads its arguments, and no line ends.
		if !strings.ContainsAny(p, "\n\t") && len(paths[typ]) < 4*limit {
			paths[typ] = append(paths[typ], p)
		}
	}
	for _, dir := range []string{"/etc", "/usr/bin", "/usr/sbin", "/usr/lib/systemd", "/usr/share/man/man8", "/var", "/boot", "/bin", "/lib", "/usr/libexec", "/usr/local"} {
		n := 0
		err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err != nil || n >= limit {
				return fs.SkipDir
			}
			n++
			switch {
			case d.IsDir():
				add(p, change.Directory)
			case d.Type()&fs.ModeSymlink != 0:
				add(p, change.Symlink)
			case d.Type().IsRegular():
				add(p, change.Regular)
			}
			return nil
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	// Those that no machine without these services has, of the rules themselves.
	for _, one := range r.rules {
		p := strings.NewReplacer("(/.*)?", "/some/name", "[^/]*", "name", "[^/]+", "name", ".*", "x/y", `\.`, ".", "(.*)?", "", "?", "", `\`, "").Replace(one.pattern)
		if strings.ContainsAny(p, "[({|+*^$") || strings.HasPrefix(p, "-") {
			continue
		}
		typ := one.typ
		if typ == 0 {
			typ = change.Regular
		}
		add(p, typ)
		add(p, change.Directory)
	}
	names := map[change.Type]string{
		change.Regular: "file", change.Directory: "dir", change.Symlink: "lnk_file", change.Socket: "sock_file",
		change.FIFO: "pipe", change.CharDevice: "chr_file", change.BlockDevice: "blk_file",
	}
	checked, wrong := 0, 0
	for typ, list := range paths {
		for len(list) > 0 {
			part := list[:min(len(list), 500)]
			list = list[len(part):]
			out, err := exec.Command(program, append([]string{"-f", contexts, "-m", names[typ]}, part...)...).CombinedOutput()
			lines := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
			if len(lines) != len(part) {
				t.Fatalf("matchpathcon: %v: %d lines for %d paths: %.300s", err, len(lines), len(part), out)
			}
			for i, line := range lines {
				_, want, _ := strings.Cut(line, "\t")
				if want == none {
					want = ""
				}
				got, err := r.Lookup(part[i], typ)
				if err != nil {
					t.Fatal(err)
				}
				checked++
				if got != want {
					if wrong++; wrong <= 20 {
						t.Errorf("Lookup(%s, %s) = %q; libselinux says %q", part[i], typ, got, want)
					}
				}
			}
		}
	}
	t.Logf("%d answers compared", checked)
	if checked < 2000 && !testing.Short() {
		t.Errorf("only %d answers were compared", checked)
	}
}

// No text makes the reader fail otherwise than by an error, and what a rule begins
// with never hides a path from it that its regular expression fits.
func FuzzRules(f *testing.F) {
	f.Add("/etc(/.*)?\tu:r:etc_t:s0\n", "/etc/x")
	f.Add("/a?b|/c\\.d{2}\t--\tu:r:x:s0\n#\n/x\t<<none>>\n", "/c.dd")
	f.Add("/[[:digit:]]\\\\+\tu:r:x\n", "/1\\")
	f.Fuzz(func(t *testing.T, text, p string) {
		r := &Rules{}
		if r.parse("x", []byte(text)) != nil {
			return
		}
		r.order()
		got, err := r.Lookup(p, change.Regular)
		if err != nil {
			return
		}
		for _, one := range r.rules {
			one.prefix = ""
			one.pattern, one.meta = map[bool]string{true: one.pattern, false: regexp.QuoteMeta(unescape(one.pattern))}[one.meta], true
		}
		want, err := r.Lookup(p, change.Regular)
		if err == nil && got != want {
			t.Errorf("Lookup(%q) = %q by the beginning, %q without", p, got, want)
		}
	})
}

func unescape(pattern string) string {
	plain, _ := literal(pattern)
	return plain
}
