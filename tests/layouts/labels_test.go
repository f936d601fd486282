package layouts

import (
	"archive/tar"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/engine"
	"github.com/liveupd/liveupd/internal/sys"
)

// policy gives the root the rules of Debian's policy, or rules of the test's own.
func policy(t *testing.T, root, contexts string) {
	t.Helper()
	write(t, root, "etc/selinux/config", "SELINUX=enforcing\nSELINUXTYPE=default\n", 0o644)
	write(t, root, "etc/selinux/default/contexts/files/file_contexts", contexts, 0o644)
	write(t, root, "etc/selinux/default/contexts/customizable_types", "public_content_t\n", 0o644)
}

const ownRules = `/.*	system_u:object_r:default_t:s0
/	-d	system_u:object_r:root_t:s0
/usr(/.*)?	system_u:object_r:usr_t:s0
/usr/bin(/.*)?	system_u:object_r:bin_t:s0
/usr/lib(/.*)?	system_u:object_r:lib_t:s0
/etc(/.*)?	system_u:object_r:etc_t:s0
/etc/secret	--	system_u:object_r:shadow_t:s0
/var(/.*)?	system_u:object_r:var_t:s0
/boot(/.*)?	system_u:object_r:boot_t:s0
/home(/.*)?	<<none>>
`

func setLabel(t *testing.T, root, name, label string) {
	t.Helper()
	dir, err := sys.OpenRoot(root)
	must(t, err)
	defer dir.Close()
	must(t, (*sys.Kernel)(nil).SetXattr(dir, name, "security.selinux", []byte(label+"\x00")))
}

func labelOf(t *testing.T, root, name string) string {
	t.Helper()
	dir, err := sys.OpenRoot(root)
	must(t, err)
	defer dir.Close()
	x, err := sys.Xattrs(dir, name)
	must(t, err)
	return strings.TrimRight(string(x["security.selinux"]), "\x00")
}

// typeLabel is a context of the test's rules by its type.
func typeLabel(typ string) string { return "system_u:object_r:" + typ + ":s0" }

func labelAll(t *testing.T, root string) {
	t.Helper()
	must(t, filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(root, p)
		setLabel(t, root, rel, typeLabel("old_t"))
		return err
	}))
}

// unlabelled lists what has no label, of all but what is liveupd's own.
func unlabelled(t *testing.T, root string) []string {
	t.Helper()
	var out []string
	must(t, filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(root, p)
		if labelOf(t, root, rel) == "" {
			out = append(out, rel)
		}
		if d.Name() == ".liveupd" {
			return fs.SkipDir
		}
		return err
	}))
	return out
}

// After a commit nothing of a labelled root is without a label: what is new has
// that of the source or of the root's rules, on a kernel that knows of none of it.
func TestLabels(t *testing.T) {
	need(t)
	root := filepath.Join(t.TempDir(), "root")
	mount(t, root, disk(t, "ext4"))
	t.Run("run", func(t *testing.T) {
		populate(t, root)
		policy(t, root, ownRules)
		write(t, root, "etc/secret", "s", 0o600)
		write(t, root, "usr/lib/chosen", "old", 0o644)
		labelAll(t, root)
		setLabel(t, root, "usr/lib/chosen", typeLabel("public_content_t"))
		source := update(t)
		for _, name := range []string{"etc/secret", "usr/lib/chosen", "usr/lib/own"} {
			write(t, source, name, "new content", 0o600)
		}
		must(t, os.Symlink("tool", filepath.Join(source, "usr/bin/link")))
		setLabel(t, source, "usr/lib/own", typeLabel("own_t"))
		write(t, root, "etc/beside", "mine", 0o644)
		setLabel(t, root, "etc/beside", typeLabel("old_t"))
		old := snapshot(t, root, nil)
		verb(t, root, source, "apply")
		for name, want := range map[string]string{
			"usr/bin/tool": "bin_t", "usr/bin/alias": "bin_t", "usr/bin/link": "bin_t", "usr/lib/app/new": "lib_t", "usr/lib/app/new/1": "lib_t",
			"usr/lib/app/kind": "lib_t", "usr/lib/app/kind/inside": "lib_t", "usr/share/doc": "usr_t", "usr/share/doc/4": "usr_t",
			"etc/added.conf": "etc_t", "etc/secret": "shadow_t", "var/lib/app/added": "var_t", "boot/vmlinuz-2": "boot_t",
			"usr/lib/chosen": "public_content_t", // somebody chose it, and restorecon would leave it
			"usr/lib/own":    "own_t",            // the source says so
			// What stays, or changes in place, keeps its own.
			"usr/lib/app/data/a": "old_t", "usr/share/same": "old_t", "etc/mine.conf": "old_t", "usr": "old_t", ".liveupd": "old_t",
		} {
			if got := labelOf(t, root, name); got != typeLabel(want) {
				t.Errorf("%s is labelled %q; want %s", name, got, want)
			}
		}
		if left := unlabelled(t, root); len(left) > 0 {
			t.Errorf("without a label: %q", left)
		}
		verb(t, root, "", "rollback")
		same(t, "after the rollback", old, snapshot(t, root, nil))
	})
}

// The labels of a tree that lies in a folder of a host with SELinux are that
// folder's: they are no part of it. Those of one that is labelled as a root are.
func TestLabelsOfTheSource(t *testing.T) {
	need(t)
	for top, want := range map[string]string{"user_home_t": "bin_t", "root_t": "source_t", "": "source_t"} {
		t.Run("top "+top, func(t *testing.T) {
			root := filepath.Join(t.TempDir(), "root")
			mount(t, root, disk(t, "ext4"))
			t.Run("run", func(t *testing.T) {
				populate(t, root)
				policy(t, root, ownRules)
				labelAll(t, root)
				source := update(t)
				for _, name := range []string{"usr/bin/tool", "usr/share/same", "usr/lib/app/new"} {
					setLabel(t, source, name, typeLabel("source_t"))
				}
				if top != "" {
					setLabel(t, source, ".", typeLabel(top))
				}
				// The second run takes what it knows of the source from the index.
				verb(t, root, source, "plan")
				verb(t, root, source, "apply")
				same := map[string]string{"bin_t": "old_t", "source_t": "source_t"}[want]
				for name, want := range map[string]string{"usr/bin/tool": want, "usr/share/same": same} {
					if got := labelOf(t, root, name); got != typeLabel(want) {
						t.Errorf("%s is labelled %q; want %s", name, got, want)
					}
				}
				if result := verb(t, root, source, "apply").(*change.Report).Result; result != "nothing-to-do" {
					t.Errorf("the same again: %s", result)
				}
			})
		})
	}
}

// A root whose rules cannot be read is refused, and one without rules, or without
// labels, is updated as ever.
func TestLabelsWithoutRules(t *testing.T) {
	need(t)
	for _, tt := range []struct {
		name, rules, label, want string
		refused                  string
	}{
		{name: "no rules", label: "old_t", want: "old_t"},
		{name: "rules, and a tree without labels", rules: ownRules},
		{name: "rules that are damaged", rules: "/a b c d\n", label: "old_t", refused: "line 1"},
		{name: "a rule that cannot be compiled", rules: "/usr(?=/).*\tu:r:t:s0\n", label: "old_t", refused: "line 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := filepath.Join(t.TempDir(), "root")
			mount(t, root, disk(t, "ext4"))
			t.Run("run", func(t *testing.T) {
				populate(t, root)
				if tt.rules != "" {
					policy(t, root, tt.rules)
				}
				if tt.label != "" {
					labelAll(t, root)
				}
				old := snapshot(t, root, nil)
				_, err := try(t, root, update(t), "apply")
				if tt.refused != "" {
					if err == nil || !strings.Contains(err.Error(), tt.refused) {
						t.Errorf("apply: %v; want an error with %q", err, tt.refused)
					}
					same(t, "a refused update changed the tree", old, snapshot(t, root, nil))
					return
				}
				must(t, err)
				want := tt.want
				if want != "" {
					want = typeLabel(want)
				}
				for _, name := range []string{"usr/bin/tool", "usr/lib/app/new/1", "etc/added.conf"} {
					if got := labelOf(t, root, name); got != want {
						t.Errorf("%s is labelled %q; want %q", name, got, want)
					}
				}
			})
		})
	}
}

// setfiles of Debian finds nothing to change in what the update brought, by
// Debian's own policy.
func TestLabelsAgainstSetfiles(t *testing.T) {
	need(t, "setfiles")
	contexts, err := os.ReadFile("/etc/selinux/default/contexts/files/file_contexts")
	if err != nil {
		t.Skip("no policy: ", err)
	}
	root := filepath.Join(t.TempDir(), "root")
	mount(t, root, disk(t, "ext4"))
	t.Run("run", func(t *testing.T) {
		populate(t, root)
		policy(t, root, string(contexts))
		labelAll(t, root)
		source := update(t)
		names := []string{
			"usr/bin/passwd", "usr/sbin/nginx", "usr/lib/systemd/system/a.service", "etc/ssh/sshd_config", "etc/cron.d/x", "usr/lib/x86_64-linux-gnu/libc.so.6",
			"var/lib/mysql/x", "usr/share/man/man1/x.1", "boot/grub/grub.cfg", "usr/libexec/x", "lib64x/y",
		}
		for _, name := range names {
			write(t, source, name, "x", 0o755)
		}
		verb(t, root, source, "apply")
		file := filepath.Join(root, "etc/selinux/default/contexts/files/file_contexts")
		out, err := exec.Command("setfiles", "-n", "-v", "-r", root, file, root).CombinedOutput()
		if err != nil {
			t.Fatalf("setfiles: %v\n%s", err, out)
		}
		checked := 0
		for _, name := range append(names, "usr/bin/tool", "usr/lib/app/new/1", "var/lib/app/added") {
			if got := labelOf(t, root, name); got == "" || strings.Contains(got, "old_t") {
				t.Errorf("%s is labelled %q", name, got)
			}
			for line := range strings.Lines(string(out)) {
				if strings.Contains(line, "/"+name+" ") && !strings.Contains(line, "/.liveupd/") {
					t.Errorf("setfiles: %s", line)
				}
			}
			checked++
		}
		if !strings.Contains(string(out), "old_t") {
			t.Errorf("setfiles finds nothing wrong with what is labelled wrong: it shows nothing: %s", out)
		}
		t.Logf("%d labels checked", checked)
	})
}

// What setfiles makes of a root after an update, what liveupd keeps with it, does not
// come back with a rollback; a repair labels, too, and no folder, symlink or file that
// is new is left out.
func TestLabelsAfterRelabelling(t *testing.T) {
	need(t, "setfiles")
	root := filepath.Join(t.TempDir(), "root")
	mount(t, root, disk(t, "ext4"))
	t.Run("run", func(t *testing.T) {
		populate(t, root)
		policy(t, root, ownRules)
		write(t, root, "usr/share/old/inner/deep", "x", 0o644)
		must(t, os.Symlink("deep", filepath.Join(root, "usr/share/old/inner/link")))
		contexts := filepath.Join(root, "etc/selinux/default/contexts/files/file_contexts")
		relabel := func() string {
			return relabelled(t, root, contexts, false)
		}
		relabel()
		old := snapshot(t, root, nil)
		source := update(t)
		write(t, source, "etc/new.d/sub/conf", "x", 0o644)
		must(t, os.Symlink("conf", filepath.Join(source, "etc/new.d/sub/link")))
		verb(t, root, source, "apply")
		if wrong := relabelled(t, root, contexts, true); wrong != "" {
			t.Errorf("after the commit restorecon would change\n%s", wrong)
		}
		write(t, root, "usr/lib/app/new/1", "rot", 0o644)
		must(t, os.Remove(filepath.Join(root, "usr/lib/app/new/2")))
		if _, err := (&engine.Engine{}).Run(t.Context(), engine.Request{Verb: "verify", Root: root, Repair: true, Source: "tree:" + source}, engine.Events{}); err != nil {
			t.Fatalf("repair: %v", err)
		}
		if wrong := relabelled(t, root, contexts, true); wrong != "" {
			t.Errorf("after the repair restorecon would change\n%s", wrong)
		}
		verb(t, root, "", "rollback") // of the repair
		write(t, root, "usr/lib/app/new/2", "new 2", 0o644)
		relabel()
		if got := labelOf(t, root, ".liveupd/tx"); got != typeLabel("default_t") {
			t.Fatalf("what is kept is labelled %q: the relabelling shows nothing", got)
		}
		verb(t, root, "", "rollback")
		now := snapshot(t, root, nil)
		for name := range now {
			if strings.HasPrefix(name, "usr/lib/app/new") && old[name] == "" {
				delete(now, name) // what this test wrote itself
			}
		}
		if wrong := relabelled(t, root, contexts, true); wrong != "" {
			t.Errorf("after the rollback restorecon would change\n%s", wrong)
		}
		for name, line := range old {
			if now[name] != line && !strings.HasPrefix(line, "mode=04") {
				t.Errorf("after the rollback %s is %s; it was %s", name, now[name], line)
			}
		}
	})
}

// relabelled has setfiles label a root, or say what it would change outside of .liveupd.
func relabelled(t *testing.T, root, contexts string, dry bool) string {
	t.Helper()
	args := []string{"-F", "-v", "-r", root, contexts, root}
	if dry {
		args = append([]string{"-n"}, args...)
	}
	out, err := exec.Command("setfiles", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("setfiles: %v\n%s", err, out)
	}
	var wrong []string
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "elabel") && !strings.Contains(line, "/.liveupd") && !strings.Contains(line, "lost+found") {
			wrong = append(wrong, line)
		}
	}
	return strings.Join(wrong, "")
}

// The labels of an archive are its headers', whatever label the folder has into which a
// kernel with SELinux unpacks it; what has none there gets that of the root's rules.
func TestLabelsOfAnArchive(t *testing.T) {
	need(t)
	root := filepath.Join(t.TempDir(), "root")
	mount(t, root, disk(t, "ext4"))
	t.Run("run", func(t *testing.T) {
		populate(t, root)
		policy(t, root, ownRules)
		labelAll(t, root)
		file := filepath.Join(t.TempDir(), "update.tar")
		out, err := os.Create(file)
		must(t, err)
		w := tar.NewWriter(out)
		for name, label := range map[string]string{"usr/bin/own": typeLabel("own_t"), "usr/bin/plain": "", "etc/secret": ""} {
			h := &tar.Header{Name: name, Mode: 0o755, Size: 1, Typeflag: tar.TypeReg, Format: tar.FormatPAX}
			if label != "" {
				h.PAXRecords = map[string]string{"RHT.security.selinux": label}
			}
			must(t, w.WriteHeader(h))
			_, err := w.Write([]byte("x"))
			must(t, err)
		}
		must(t, w.Close())
		must(t, out.Close())
		do := func(name string) {
			t.Helper()
			req := engine.Request{Verb: name, Root: root, Source: "tar:" + file, AllowUnsigned: true}
			if _, err := (&engine.Engine{}).Run(t.Context(), req, engine.Events{}); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		do("plan")
		tops, err := filepath.Glob(filepath.Join(root, ".liveupd/unpacked/*"))
		must(t, err)
		given := 0
		for _, top := range tops {
			if fi, err := os.Stat(top); err == nil && fi.IsDir() {
				rel, _ := filepath.Rel(root, top)
				setLabel(t, root, rel, typeLabel("default_t"))
				given++
			}
		}
		if given == 0 {
			t.Fatalf("nothing is unpacked: %q", tops)
		}
		do("apply")
		for name, want := range map[string]string{"usr/bin/own": "own_t", "usr/bin/plain": "bin_t", "etc/secret": "shadow_t"} {
			if got := labelOf(t, root, name); got != typeLabel(want) {
				t.Errorf("%s is labelled %q; want %s", name, got, want)
			}
		}
		if left := unlabelled(t, root); len(left) > 0 {
			t.Errorf("without a label: %q", left)
		}
	})
}
