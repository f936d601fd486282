package engine

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// whenPlanned runs a verb and calls do when its plan is told: between plan and commit.
func (b *bed) whenPlanned(req Request, do func(*change.Plan)) (any, error) {
	b.t.Helper()
	req.Root = b.root
	if req.Verb == "apply" {
		req.Source, req.AllowUnsigned = "tree:"+b.source, true
	}
	return (&Engine{}).Run(b.t.Context(), req, Events{Emit: func(v any) {
		if p, ok := v.(*change.Plan); ok {
			do(p)
		}
	}})
}

// changing is a bed with an update ahead that has each kind of change.
func changing(t *testing.T) *bed {
	b := diskBed(t)
	whole(files{"etc/conf": "1", "etc/meta": "m", "etc/gone": "g", "usr/bin/tool": "1", "usr/lib/gone/x": "x", "usr/lib/link": "->a"}).lay(t, b.source)
	b.must(Request{Verb: "apply"})
	files{"etc/gone": "gone", "usr/lib/gone": "gone", "usr/lib/link": "gone"}.lay(t, b.source)
	whole(files{"etc/conf": "22", "etc/new": "n", "usr/bin/tool": "22", "usr/lib/new/x": "x", "usr/lib/link": "->b"}).lay(t, b.source)
	b.do(os.Chmod(filepath.Join(b.source, "etc/meta"), 0o600))
	return b
}

// Somebody changes what the update is about to change, after the plan was made:
// the apply is refused with the path, and what they did stands.
func TestEditAfterThePlan(t *testing.T) {
	for name, tt := range map[string]struct {
		path string // that is named
		edit func(b *bed) error
	}{
		"replaced": {"/etc/conf", func(b *bed) error { return os.WriteFile(b.at("etc/conf"), []byte("x"), 0o644) }},
		"metadata": {"/etc/meta", func(b *bed) error { return os.Chmod(b.at("etc/meta"), 0o640) }},
		"removed":  {"/etc/gone", func(b *bed) error { return os.WriteFile(b.at("etc/gone"), []byte("x"), 0o644) }},
		"added":    {"/etc/new", func(b *bed) error { return os.WriteFile(b.at("etc/new"), []byte("x"), 0o644) }},
		"a symlink": {"/usr/lib/link", func(b *bed) error {
			return errors.Join(os.Remove(b.at("usr/lib/link")), os.Symlink("c", b.at("usr/lib/link")))
		}},
		"in a removed tree":  {"/usr/lib/gone", func(b *bed) error { return os.WriteFile(b.at("usr/lib/gone/mine"), nil, 0o644) }},
		"where a tree comes": {"/usr/lib/new", func(b *bed) error { return os.Mkdir(b.at("usr/lib/new"), 0o755) }},
		"gone":               {"/usr/bin/tool", func(b *bed) error { return os.Remove(b.at("usr/bin/tool")) }},
	} {
		t.Run(name, func(t *testing.T) {
			b := changing(t)
			var edited map[string]string
			_, err := b.whenPlanned(Request{Verb: "apply"}, func(*change.Plan) {
				b.do(tt.edit(b))
				edited = b.state()
			})
			if !errors.Is(err, change.ErrDrift) || !strings.Contains(err.Error(), tt.path) {
				t.Errorf("apply: %v; want ErrDrift that names %s", err, tt.path)
			}
			b.sameState("a refused apply changed the root", edited, b.state())
			if list := b.generations(); len(list) != 1 {
				t.Errorf("left behind: %+v", list)
			}
			// A new plan takes what is there.
			b.must(Request{Verb: "apply"})
		})
	}
}

// Their edits after the commit: the plan of the rollback says what will become of
// them before anybody is asked, and the report says it again.
func TestRollbackSaysWhatItKeeps(t *testing.T) {
	b := changing(t)
	before := b.state()
	b.must(Request{Verb: "apply"})
	b.write(b.root, "etc/conf", "mine")
	b.write(b.root, "etc/gone", "mine")
	b.write(b.root, "usr/lib/new/log", "mine")
	b.do(os.Chmod(b.at("etc/meta"), 0o640), os.Remove(b.at("usr/lib/link")), os.Symlink("mine", b.at("usr/lib/link")))
	want := []string{
		"/etc/conf was changed", "/etc/conf.liveupd-saved", "/etc/gone was made again", "/etc/gone.liveupd-saved",
		"/usr/lib/new was changed", "/usr/lib/new.liveupd-saved", "/etc/meta was given the mode 0640", "/usr/lib/link.liveupd-saved",
	}
	edited := b.state()
	var asked *change.Plan
	_, err := (&Engine{}).Run(t.Context(), Request{Verb: "rollback", Root: b.root}, Events{Confirm: func(p *change.Plan) bool {
		asked = p
		return false
	}})
	if !errors.Is(err, ErrDeclined) {
		t.Fatalf("declined: %v", err)
	}
	for _, text := range want {
		if !strings.Contains(strings.Join(asked.Warnings, "\n"), text) {
			t.Errorf("the plan does not say %q: %q", text, asked.Warnings)
		}
	}
	b.sameState("a declined rollback changed the root", edited, b.state())
	report := b.must(Request{Verb: "rollback"}).(*change.Report)
	for _, text := range want {
		// It has happened by now: some words differ, the paths do not.
		p, _, _ := strings.Cut(text, " ")
		if !strings.Contains(strings.Join(report.Warnings, "\n"), p) {
			t.Errorf("the report does not tell of %s: %q", p, report.Warnings)
		}
	}
	for name, content := range map[string]string{
		"etc/conf.liveupd-saved": "mine", "etc/gone.liveupd-saved": "mine", "usr/lib/new.liveupd-saved/log": "mine", "etc/conf": "1", "etc/gone": "g",
	} {
		if got := b.read(name); got != content {
			t.Errorf("%s holds %q; want %q", name, got, content)
		}
	}
	after := b.state()
	for p := range after {
		if strings.Contains(p, ".liveupd-saved") {
			delete(after, p)
		}
	}
	delete(before, "/etc/meta")
	delete(after, "/etc/meta")
	b.sameState("but for their edits, the old tree", before, after)
	if found, r, err := b.verify(Request{}); err != nil || r.Damaged > 0 {
		t.Errorf("verify takes what a rollback kept for damage: %q, %v", found, err)
	}
}

// A program that holds a file open for writing is named, with its number.
func TestWriterIsNamed(t *testing.T) {
	b := changing(t)
	cmd := exec.Command("sh", "-c", `exec 3>>"$1" && echo open && exec sleep 1000`, "sh", b.at("etc/conf"))
	out, err := cmd.StdoutPipe()
	b.do(err, cmd.Start())
	defer func() {
		b.do(cmd.Process.Kill())
		_ = cmd.Wait() // killed
	}()
	_, err = bufio.NewReader(out).ReadString('\n')
	b.do(err)
	who := fmt.Sprintf("sleep (process %d)", cmd.Process.Pid)
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", cmd.Process.Pid)); string(comm) == "sleep\n" {
			break
		}
	}
	before := b.state()
	_, err = b.run(Request{Verb: "apply"})
	hint, ok := errors.AsType[*change.HintError](err)
	if !errors.Is(err, change.ErrDrift) || !strings.Contains(err.Error(), "/etc/conf") || !strings.Contains(err.Error(), who) || !ok || !strings.Contains(hint.Hint, who) {
		t.Errorf("apply: %v; want ErrDrift that names /etc/conf and %s", err, who)
	}
	b.sameState("a refused apply changed the root", before, b.state())
}

// away is a process in a mount namespace of its own, whose mounts reach nobody.
type away struct {
	t   *testing.T
	in  io.WriteCloser
	out *bufio.Reader
	cmd *exec.Cmd
}

func newAway(t *testing.T) *away {
	t.Helper()
	a := &away{t: t, cmd: exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-eu")}
	in, err := a.cmd.StdinPipe()
	out, err2 := a.cmd.StdoutPipe()
	if err := errors.Join(err, err2, a.cmd.Start()); err != nil {
		t.Fatal(err)
	}
	a.in, a.out = in, bufio.NewReader(out)
	t.Cleanup(func() {
		in.Close()
		if err := a.cmd.Wait(); err != nil {
			t.Errorf("the other namespace: %v", err)
		}
	})
	return a
}

// sh runs a command there and gives what it printed.
func (a *away) sh(format string, args ...any) string {
	a.t.Helper()
	fmt.Fprintf(a.in, format+"; echo END\n", args...)
	var text strings.Builder
	for {
		line, err := a.out.ReadString('\n')
		if err != nil {
			a.t.Errorf("the other namespace ended: %v", err)
			return text.String()
		}
		if line == "END\n" {
			return text.String()
		}
		text.WriteString(line)
	}
}

// A mount that comes between the plan and the end of the swap is never carried
// off with the old file: the apply is refused or taken back, with the path.
func TestMountDuringTheUpdate(t *testing.T) {
	for name, tt := range map[string]struct {
		mount  string // in the other namespace
		path   string
		moment string // plan, swap
	}{
		"upon a file, planned":        {"mount --bind /dev/null %[1]s/etc/conf", "/etc/conf", "plan"},
		"upon a file, in the swap":    {"mount --bind /dev/null %[1]s/etc/conf", "/etc/conf", "swap"},
		"upon a removed file":         {"mount --bind /dev/null %[1]s/etc/gone", "/etc/gone", "plan"},
		"below a removed folder":      {"mount --bind /dev/null %[1]s/usr/lib/gone/x", "/usr/lib/gone/x", "swap"},
		"of a file, elsewhere, early": {"mount --bind %[1]s/etc/conf %[2]s", "/etc/conf", "plan"},
		"of a file, elsewhere, late":  {"mount --bind %[1]s/etc/conf %[2]s", "/etc/conf", "swap"},
	} {
		for _, control := range []bool{false, true} {
			if control && tt.moment != "swap" {
				continue
			}
			t.Run(fmt.Sprintf("%s, negative control %v", name, control), func(t *testing.T) {
				b := changing(t)
				other := newAway(t)
				elsewhere := filepath.Join(t.TempDir(), "elsewhere")
				b.do(os.WriteFile(elsewhere, nil, 0o600))
				mounts := func() string { return other.sh("grep -F -e %s -e %s /proc/self/mountinfo || true", b.root, elsewhere) }
				var once sync.Once
				come := func() { once.Do(func() { other.sh(tt.mount, b.root, elsewhere) }) }
				before := b.state()
				e := &Engine{noMounts: control, Kernel: sys.WithHook(func(c sys.Call) sys.Fault {
					// The first name that moves into its place.
					if c.Name == "renameat2" && tt.moment == "swap" && slices.Contains([]string{"conf", "tool", "new"}, c.To) {
						come()
					}
					return sys.Fault{}
				})}
				_, err := e.Run(t.Context(), Request{Verb: "apply", Root: b.root, Source: "tree:" + b.source, AllowUnsigned: true}, Events{Emit: func(v any) {
					if _, ok := v.(*change.Plan); ok && tt.moment == "plan" {
						come()
					}
				}})
				carriedOff := strings.Contains(mounts(), "/.liveupd/tx/")
				if control {
					if err != nil || !carriedOff {
						t.Errorf("without the look: %v; carried off: %v; want it unseen", err, carriedOff)
					}
					return
				}
				if !errors.Is(err, change.ErrDrift) || !strings.Contains(err.Error(), tt.path+":") || !strings.Contains(err.Error(), "mount namespace of process") {
					t.Errorf("apply: %v; want ErrDrift that names %s and whose it is", err, tt.path)
				}
				if carriedOff {
					t.Errorf("the mount went with the old file: %s", mounts())
				}
				b.sameState("the root is not as it was", before, b.state())
			})
		}
	}
}

// One that comes into our own namespace in the midst of the swap stops the kernel
// itself: it is told as what it is.
func TestMountInOurNamespaceDuringTheSwap(t *testing.T) {
	b := changing(t)
	var once sync.Once
	mounted := false
	e := &Engine{Kernel: sys.WithHook(func(c sys.Call) sys.Fault {
		if c.Name == "renameat2" && c.To == "new" {
			once.Do(func() {
				tool(t, "mount", "--bind", "/dev/null", b.at("etc/conf"))
				mounted = true
			})
		}
		return sys.Fault{}
	})}
	before := b.state()
	_, err := e.Run(t.Context(), Request{Verb: "apply", Root: b.root, Source: "tree:" + b.source, AllowUnsigned: true}, Events{})
	if !mounted {
		t.Fatal("the swap was not met")
	}
	tool(t, "umount", b.at("etc/conf"))
	if !errors.Is(err, change.ErrDrift) || !strings.Contains(err.Error(), "/etc/conf") || !strings.Contains(err.Error(), "mounted on it") {
		t.Errorf("apply: %v; want ErrDrift that names /etc/conf", err)
	}
	b.sameState("the root is not as it was", before, b.state())
}

// A mount over a folder hides what changes below it: the file system below is what
// the update is for, the mount stays, and it is said.
func TestFolderIsCoveredDuringTheSwap(t *testing.T) {
	for _, moment := range []string{"plan", "swap"} {
		t.Run(moment, func(t *testing.T) {
			b := changing(t)
			var once sync.Once
			cover := func() { once.Do(func() { tool(t, "mount", "-t", "tmpfs", "none", b.at("etc")) }) }
			e := &Engine{Kernel: sys.WithHook(func(c sys.Call) sys.Fault {
				if c.Name == "renameat2" && c.To == "new" && moment == "swap" {
					cover()
				}
				return sys.Fault{}
			})}
			result, err := e.Run(t.Context(), Request{Verb: "apply", Root: b.root, Source: "tree:" + b.source, AllowUnsigned: true}, Events{Emit: func(v any) {
				if _, ok := v.(*change.Plan); ok && moment == "plan" {
					cover()
				}
			}})
			if got := b.read("etc/conf"); got != "-" {
				t.Errorf("the mount does not stand: etc/conf holds %q", got)
			}
			tool(t, "umount", b.at("etc"))
			if err != nil {
				t.Fatalf("apply: %v", err)
			}
			if list := result.(*change.Report).Warnings; !slices.ContainsFunc(list, func(w string) bool { return strings.Contains(w, "mounted on /etc") }) {
				t.Errorf("nothing tells of the mount: %q", list)
			}
			if got := b.read("etc/conf"); got != "22" {
				t.Errorf("below it etc/conf holds %q; want the new one", got)
			}
		})
	}
}

// A rollback looks, too, before anything moves.
func TestMountBeforeARollback(t *testing.T) {
	b := changing(t)
	b.must(Request{Verb: "apply"})
	other := newAway(t)
	before := b.state()
	_, err := b.whenPlanned(Request{Verb: "rollback"}, func(*change.Plan) { other.sh("mount --bind /dev/null %s/etc/conf", b.root) })
	if !errors.Is(err, change.ErrDrift) || !strings.Contains(err.Error(), "/etc/conf") {
		t.Errorf("rollback: %v; want ErrDrift that names /etc/conf", err)
	}
	b.sameState("a refused rollback changed the root", before, b.state())
	b.must(Request{Verb: "rollback"})
}
