package rootfs

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
)

// Only ld.so.conf, or only the cache: what a soname resolves to before and after.
func TestLoaderConfiguration(t *testing.T) {
	if _, err := exec.LookPath("ldconfig"); err != nil {
		t.Skip("no ldconfig here")
	}
	fs := func() files {
		return withLoader(files{
			"usr/sbin/daemon": program("liba.so"), "usr/lib/x86_64-linux-gnu/liba.so": lib("liba.so"), "opt/new/liba.so": lib("liba.so"),
			"usr/sbin/other": program("libb.so"), "usr/lib/x86_64-linux-gnu/libb.so": lib("libb.so"),
			"etc/ld.so.conf":      "include /etc/ld.so.conf.d/*.conf\n",
			unitDir + "x.service": "[Service]\nExecStart=/usr/sbin/daemon\n", unitDir + "y.service": "[Service]\nExecStart=/usr/sbin/other\n",
		})
	}
	ldconfig := func(dir string) string {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), "ldconfig", "-r", dir).CombinedOutput(); err != nil {
			t.Skipf("ldconfig: %v\n%s", err, out)
		}
		return filepath.Join(dir, "etc/ld.so.cache")
	}
	dir := writeTree(t, fs())
	ldconfig(dir)
	base := Dir(openDir(t, dir))
	confFS := fs()
	confFS["etc/ld.so.conf.d/new.conf"] = "/opt/new\n"
	withConf := writeTree(t, confFS)
	ldconfig(withConf)
	src := openDir(t, withConf)
	file := &change.Node{Type: change.Regular, Size: 1}
	conf := change.Entry{Path: "/etc/ld.so.conf.d/new.conf", Op: change.Add, New: file, From: "/etc/ld.so.conf.d/new.conf"}
	folder := change.Entry{Path: "/etc/ld.so.conf.d", Op: change.Add, New: &change.Node{Type: change.Directory}, From: "/etc/ld.so.conf.d"}
	cache := change.Entry{Path: "/etc/ld.so.cache", Op: change.Replace, Old: file, New: file, From: "/etc/ld.so.cache"}
	aside := change.Entry{Path: "/usr/share/x", Op: change.Add, New: file, From: "/etc/ld.so.conf"}
	resolved := func(v View) string {
		tree := load(t, v, LoadOptions{Names: []string{"x.service", "y.service"}})
		uses := append(usesOf(t, tree, "x.service"), usesOf(t, tree, "y.service")...)
		return strings.Join(slices.DeleteFunc(uses, func(s string) bool { return !strings.HasSuffix(s, "/liba.so") && !strings.HasSuffix(s, "/libb.so") }), " ")
	}
	const before = "soname /usr/lib/x86_64-linux-gnu/liba.so soname /usr/lib/x86_64-linux-gnu/libb.so"
	const after = "soname /opt/new/liba.so soname /usr/lib/x86_64-linux-gnu/libb.so"
	for _, c := range []struct {
		name    string
		entries []change.Entry
		want    string
	}{
		{"nothing of the loader's", []change.Entry{aside}, before},
		{"ld.so.conf alone: as the next cache will have it", []change.Entry{folder, conf}, after},
		{"the cache alone", []change.Entry{cache}, after},
		{"both", []change.Entry{cache, folder, conf}, after},
	} {
		if d := cmp.Diff(c.want, resolved(Overlay(base, &change.Delta{Entries: c.entries}, src))); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
	}
	if got := resolved(base); got != before {
		t.Errorf("before: %s", got)
	}
}
