package engine

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
)

// cap_net_bind_service, as setcap writes it: struct vfs_cap_data of linux/capability.h, revision 2.
const netBind = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// installed is a bed with a whole system's update applied.
func installed(t *testing.T) *bed {
	b := diskBed(t)
	whole(files{
		"usr/bin/tool": "tool 1", "usr/bin/cap": "cap", "usr/bin/mode": "mode", "usr/bin/owner": "owner", "usr/bin/xattr": "xattr",
		"usr/lib/gone": "lost", "usr/lib/type": "type", "usr/lib/dir/a": "a", "usr/lib/dir/b": "b", "usr/lib/link": "->gone",
		"usr/lib/tree/x": "x", "usr/lib/tree/y": "y", "usr/lib/one": "linked", "usr/lib/single": "linked",
		"etc/conf": "conf", "etc/gone": "here", "var/lib/x": "x",
	}).lay(t, b.source)
	src := func(name string) string { return filepath.Join(b.source, name) }
	b.do(
		os.Link(src("usr/lib/one"), src("usr/lib/two")), syscall.Chmod(src("usr/bin/mode"), 0o4755), os.Chown(src("usr/bin/owner"), 7, 8),
		syscall.Setxattr(src("usr/bin/cap"), "security.capability", []byte(netBind), 0),
		syscall.Setxattr(src("usr/bin/xattr"), "user.x", []byte("1"), 0),
		syscall.Mkfifo(src("usr/lib/fifo"), 0o600), syscall.Mknod(src("usr/lib/null"), syscall.S_IFCHR|0o666, 0x103),
		os.Chmod(src("usr/lib/null"), 0o666),
	)
	b.must(Request{Verb: "apply"})
	return b
}

// verify runs it and gives what it found, sorted: "damage /path problem aspects".
func (b *bed) verify(req Request) ([]string, *change.VerifyReport, error) {
	b.t.Helper()
	req.Verb, req.Root = "verify", b.root
	var out []string
	result, err := (&Engine{}).Run(b.t.Context(), req, Events{Emit: func(v any) {
		if d, ok := v.(change.Damage); ok {
			out = append(out, strings.TrimSpace(strings.Join([]string{d.Owner, d.Path, d.Problem, strings.Join(d.Aspects, ",")}, " ")))
		}
	}})
	slices.Sort(out)
	report, _ := result.(*change.VerifyReport)
	return out, report, err
}

// wreck damages each kind of object in each way.
func (b *bed) wreck() []string {
	b.t.Helper()
	b.do(
		os.WriteFile(b.at("usr/bin/tool"), []byte("tool X"), 0o644), os.Chmod(b.at("usr/bin/mode"), 0o755), os.Chown(b.at("usr/bin/owner"), 0, 0),
		os.Remove(b.at("usr/lib/gone")), os.Remove(b.at("usr/lib/type")), os.Mkdir(b.at("usr/lib/type"), 0o755),
		os.WriteFile(b.at("usr/lib/type/inner"), nil, 0o600),
		os.RemoveAll(b.at("usr/lib/dir")), os.WriteFile(b.at("usr/lib/dir"), []byte("now a file"), 0o644),
		os.Remove(b.at("usr/lib/link")), os.Symlink("elsewhere", b.at("usr/lib/link")), os.RemoveAll(b.at("usr/lib/tree")),
		os.Remove(b.at("usr/lib/two")), os.WriteFile(b.at("usr/lib/two"), []byte("linked"), 0o644), sameTimes(b.at("usr/lib/one"), b.at("usr/lib/two")),
		os.Remove(b.at("usr/lib/fifo")), os.Remove(b.at("usr/lib/null")),
		syscall.Mknod(b.at("usr/lib/null"), syscall.S_IFCHR|0o666, 0x105), os.Chmod(b.at("usr/lib/null"), 0o666),
		sameTimes(filepath.Join(b.source, "usr/lib/null"), b.at("usr/lib/null")),
		syscall.Removexattr(b.at("usr/bin/cap"), "security.capability"), syscall.Setxattr(b.at("usr/bin/xattr"), "user.x", []byte("2"), 0),
		os.MkdirAll(b.at("usr/lib/extra/deep"), 0o755), os.WriteFile(b.at("usr/lib/extra/deep/x"), []byte("x"), 0o644),
		// The machine's own: no damage.
		os.WriteFile(b.at("etc/conf"), []byte("mine"), 0o644), os.Remove(b.at("etc/gone")), os.WriteFile(b.at("var/lib/x"), []byte("y"), 0o644),
		os.WriteFile(b.at("etc/mine"), nil, 0o644),
	)
	return []string{
		"damage /usr/bin/cap differs capability",
		"damage /usr/bin/mode differs mode",
		"damage /usr/bin/owner differs owner",
		"damage /usr/bin/tool differs content",
		"damage /usr/bin/xattr differs xattr",
		"damage /usr/lib/dir differs type",
		"damage /usr/lib/dir/a missing",
		"damage /usr/lib/dir/b missing",
		"damage /usr/lib/extra unexpected",
		"damage /usr/lib/fifo missing",
		"damage /usr/lib/gone missing",
		"damage /usr/lib/link differs content",
		"damage /usr/lib/null differs content",
		"damage /usr/lib/tree missing",
		"damage /usr/lib/tree/x missing",
		"damage /usr/lib/tree/y missing",
		"damage /usr/lib/two differs links",
		"damage /usr/lib/type differs type",
		"machine /etc/conf differs content",
		"machine /etc/gone missing",
		"machine /var/lib/x differs content",
	}
}

func sameTimes(from, to string) error {
	st, err := os.Lstat(from)
	if err != nil {
		return err
	}
	return os.Chtimes(to, st.ModTime(), st.ModTime())
}

func TestRepairOfEverything(t *testing.T) {
	b := installed(t)
	if found, report, err := b.verify(Request{Full: true}); err != nil || len(found) > 0 || report.Damaged+report.Machine > 0 {
		t.Fatalf("verify after the update: %q, %+v, %v", found, report, err)
	}
	whole := b.state()
	want := b.wreck()
	found, report, err := b.verify(Request{})
	if diff := cmp.Diff(want, found); diff != "" {
		t.Errorf("verify (-want +got):\n%s", diff)
	}
	if err == nil || report.Damaged != 18 || report.Machine != 3 {
		t.Errorf("verify: %v, %+v; want an error, 18 and 3", err, report)
	}
	wrecked := b.state()

	plan := b.must(Request{Verb: "verify", Repair: true, PlanOnly: true}).(*change.Plan)
	if plan.Changes.Added+plan.Changes.Replaced+plan.Changes.Removed+plan.Changes.Metadata == 0 || len(plan.Steps) == 0 {
		t.Errorf("the plan of a repair: %+v", plan)
	}
	b.sameState("--plan changed the root", wrecked, b.state())

	done := b.must(Request{Verb: "verify", Repair: true}).(*change.Report)
	if done.Result != "done" || done.ID == "" || done.PlanID != plan.ID {
		t.Errorf("repair: %+v; want done, plan %s", done, plan.ID)
	}
	mended := b.state()
	for p := range wrecked {
		if strings.HasPrefix(p, "/etc/") || strings.HasPrefix(p, "/var/") {
			whole[p] = wrecked[p]
		}
	}
	delete(whole, "/etc/gone")
	b.sameState("after the repair", whole, mended)
	if found, report, err := b.verify(Request{Full: true}); err != nil || report.Damaged > 0 || len(found) != 3 {
		t.Errorf("verify after the repair: %q, %+v, %v", found, report, err)
	}
	if again := b.must(Request{Verb: "verify", Repair: true}).(*change.Report); again.Result != "nothing-to-do" {
		t.Errorf("a second repair: %+v", again)
	}
	b.must(Request{Verb: "rollback", ID: done.ID})
	b.sameState("after the rollback of the repair", wrecked, b.state())
}

// Where the content comes from: a kept generation, another path, the source; from
// nowhere it stays, and is named.
func TestRepairSources(t *testing.T) {
	t.Run("a kept generation", func(t *testing.T) {
		b := diskBed(t)
		for _, content := range []string{"one", "two", "one"} {
			whole(files{"usr/bin/tool": content}).lay(t, b.source)
			b.must(Request{Verb: "apply"})
		}
		b.do(os.Rename(b.source, b.source+".away"), os.Remove(b.at("usr/bin/tool")))
		b.must(Request{Verb: "verify", Repair: true})
		if got := b.read("usr/bin/tool"); got != "one" {
			t.Errorf("repaired: %q", got)
		}
	})
	t.Run("another path", func(t *testing.T) {
		b := installed(t)
		b.do(os.Rename(b.source, b.source+".away"), os.Remove(b.at("usr/lib/single")))
		b.must(Request{Verb: "verify", Repair: true})
		if got := b.read("usr/lib/single"); got != "linked" {
			t.Errorf("repaired: %q", got)
		}
	})
	t.Run("nowhere", func(t *testing.T) {
		b := installed(t)
		away := b.source + ".away"
		b.do(os.Rename(b.source, away))
		before := b.state()
		b.do(os.Remove(b.at("usr/lib/gone")), os.Chmod(b.at("usr/bin/mode"), 0o600))
		result, err := b.run(Request{Verb: "verify", Repair: true})
		hint, _ := errors.AsType[*change.HintError](err)
		if err == nil || !strings.Contains(err.Error(), "/usr/lib/gone") || hint == nil || !strings.Contains(hint.Hint, "--source") {
			t.Errorf("repair without a source: %v; want an error with the path and --source", err)
		}
		if r, ok := result.(*change.Report); !ok || r.Result != "done" {
			t.Errorf("what could be repaired: %+v; want done", result)
		}
		got := b.state()
		delete(before, "/usr/lib/gone")
		b.sameState("the rest", before, got)
		// A source with another version does not do.
		b.do(os.CopyFS(b.source, os.DirFS(away+"/usr/lib/dir")), os.MkdirAll(filepath.Join(b.source, "usr/lib"), 0o755))
		b.write(b.source, "usr/lib/gone", "los?")
		if _, err := b.run(Request{Verb: "verify", Repair: true, Source: "tree:" + b.source}); err == nil || !strings.Contains(err.Error(), "another version") {
			t.Errorf("repair from another version: %v", err)
		}
		if got := b.read("usr/lib/gone"); got != "-" {
			t.Errorf("the wrong version was taken: %q", got)
		}
		b.must(Request{Verb: "verify", Repair: true, Source: "tree:" + away})
		if got := b.read("usr/lib/gone"); got != "lost" {
			t.Errorf("repaired: %q", got)
		}
	})
}

// A disk that alters a file behind the file system's back leaves its times alone:
// only --full sees it, and the repair brings it back. What is kept is always read
// before a rollback.
func TestBitRotOnTheDisk(t *testing.T) {
	b := diskBed(t)
	tool1, tool2 := strings.Repeat("the old tool ", 500), strings.Repeat("the new tool ", 500)
	for _, content := range []string{tool1, tool2} {
		whole(files{"usr/bin/tool": content}).lay(t, b.source)
		b.must(Request{Verb: "apply"})
	}
	whole := b.state()
	time.Sleep(2100 * time.Millisecond) // the index does not remember what has just changed
	if _, report, err := b.verify(Request{}); err != nil || report.Damaged > 0 {
		t.Fatalf("verify: %+v, %v", report, err)
	}
	b.rot("the new tool ")
	if found, _, err := b.verify(Request{}); err != nil || len(found) > 0 {
		t.Errorf("verify by the index: %q, %v; want nothing: no time has changed", found, err)
	}
	if found, _, _ := b.verify(Request{Full: true}); !slices.Equal(found, []string{"damage /usr/bin/tool differs content"}) {
		t.Errorf("verify --full: %q", found)
	}
	b.must(Request{Verb: "verify", Repair: true, Full: true})
	b.sameState("after the repair", whole, b.state())

	b.rot("the old tool ")
	list := b.generations()
	_, err := b.run(Request{Verb: "rollback", ID: list[1].ID})
	if !errors.Is(err, change.ErrVerification) || !strings.Contains(err.Error(), "/usr/bin/tool") {
		t.Errorf("rollback: %v; want ErrVerification that names /usr/bin/tool", err)
	}
	b.sameState("a refused rollback changed the root", whole, b.state())
}

// With /usr on a file system of its own all of it holds there, too.
func TestRepairOnTwoFileSystems(t *testing.T) {
	b := diskBed(t)
	b.do(os.Mkdir(b.at("usr"), 0o755))
	newDisk(t, b.at("usr"))
	for _, v := range []string{"one", "two", "one"} {
		whole(files{"usr/bin/tool": v, "usr/lib/dir/" + v: v, "opt/x": "x", "etc/conf": v}).lay(t, b.source)
		b.must(Request{Verb: "apply", Keep: 3})
		b.do(os.RemoveAll(filepath.Join(b.source, "usr/lib/dir")))
	}
	whole := b.state()
	// The only copies left are those that the second file system keeps.
	b.do(os.Rename(b.source, b.source+".away"), os.Remove(b.at("usr/bin/tool")), os.RemoveAll(b.at("usr/lib/dir")),
		os.WriteFile(b.at("etc/conf"), []byte("mine"), 0o644))
	broken := b.state()
	done := b.must(Request{Verb: "verify", Repair: true, Keep: 4}).(*change.Report)
	whole["/etc/conf"] = broken["/etc/conf"]
	b.sameState("after the repair", whole, b.state())
	b.must(Request{Verb: "rollback", ID: done.ID})
	b.sameState("after the rollback of the repair", broken, b.state())
	// What was replaced in a folder that somebody removed asks for the folder.
	if _, err := b.run(Request{Verb: "rollback"}); err == nil || !strings.Contains(err.Error(), "/usr/lib/dir/two") {
		t.Errorf("rollback without the folder: %v", err)
	}
	b.do(os.Mkdir(b.at("usr/lib/dir"), 0o755))
	kept := b.generations()[1]
	b.flip(b.at("usr/.liveupd/tx/" + kept.ID + "/up/bin/tool"))
	if _, err := b.run(Request{Verb: "rollback"}); !errors.Is(err, change.ErrVerification) || !strings.Contains(err.Error(), "/usr/bin/tool") {
		t.Errorf("rollback of a rotten generation on the second file system: %v", err)
	}
}

// Bit rot in what is kept refuses a rollback before anything moves, for each
// generation on the way.
func TestRollbackOfRottenGeneration(t *testing.T) {
	b := diskBed(t)
	for _, v := range []string{"1", "2", "3"} {
		whole(files{"usr/bin/tool": "tool " + v, "usr/lib/dir" + v + "/x": v}).lay(t, b.source)
		if v != "1" {
			b.do(os.RemoveAll(filepath.Join(b.source, "usr/lib/dir1")))
		}
		b.must(Request{Verb: "apply", Keep: 3})
	}
	list := b.generations()
	before := b.state()
	for name, rotten := range map[string]struct{ file, path string }{
		"a replaced file":          {"up/usr/bin/tool", "/usr/bin/tool"},
		"in a folder that went":    {"del/000001/x", "/usr/lib/dir1/x"},
		"a kept file that is gone": {"", "/usr/bin/tool"},
	} {
		t.Run(name, func(t *testing.T) {
			file := b.at(".liveupd/tx/" + list[1].ID + "/" + rotten.file)
			mend := func() { b.flip(file) }
			if rotten.file == "" {
				file = b.at(".liveupd/tx/" + list[1].ID + "/up/usr/bin/tool")
				b.do(os.Rename(file, file+".away"))
				mend = func() { b.do(os.Rename(file+".away", file)) }
			} else {
				b.flip(file)
			}
			defer mend()
			// Generation 2 is on the way to it; generation 3 is whole.
			_, err := b.run(Request{Verb: "rollback", ID: list[1].ID})
			if !errors.Is(err, change.ErrVerification) || !strings.Contains(err.Error(), rotten.path) {
				t.Errorf("rollback: %v; want ErrVerification that names %s", err, rotten.path)
			}
			if hint, ok := errors.AsType[*change.HintError](err); !ok || !strings.Contains(hint.Hint, "liveupd rollback --source tree:") {
				t.Errorf("no way out is named: %v", err)
			}
			b.sameState("a refused rollback changed the root", before, b.state())
			if now := b.generations(); now[0].State != "verified" || now[1].State != "verified" {
				t.Errorf("the generations are %+v", now)
			}
		})
	}
	// With a source that has what is damaged it goes on; with another one it does not.
	right, wrong := t.TempDir(), t.TempDir()
	whole(files{"usr/bin/tool": "tool 1"}).lay(t, right)
	whole(files{"usr/bin/tool": "tool ?"}).lay(t, wrong)
	b.flip(b.at(".liveupd/tx/" + list[1].ID + "/up/usr/bin/tool"))
	if _, err := b.run(Request{Verb: "rollback", ID: list[1].ID, Source: "tree:" + wrong}); !errors.Is(err, change.ErrVerification) {
		t.Errorf("rollback with the wrong source: %v", err)
	}
	b.sameState("a refused rollback changed the root", before, b.state())
	report := b.must(Request{Verb: "rollback", ID: list[1].ID, Source: "tree:" + right}).(*change.Report)
	if !slices.ContainsFunc(report.Warnings, func(w string) bool { return strings.Contains(w, "/usr/bin/tool was damaged") }) {
		t.Errorf("the report does not tell of it: %q", report.Warnings)
	}
	if got := b.read("usr/bin/tool"); got != "tool 1" {
		t.Errorf("after the rollback: %q", got)
	}
}
