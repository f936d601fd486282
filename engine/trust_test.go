package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/internal/trust"
)

// trustBed is a root with its keys, and updates of it that are signed.
type trustBed struct {
	*bed
	dir   string
	clock trust.Clock
}

func newTrustBed(t *testing.T) *trustBed {
	b := &trustBed{bed: newBed(t), dir: t.TempDir()}
	b.write(b.root, "opt/app/file", "old")
	return b
}

// key makes a key; its public half is trusted at once where trusted says so.
func (b *trustBed) key(name string, trusted bool) string {
	b.t.Helper()
	report, err := Keygen(KeygenRequest{Name: filepath.Join(b.dir, name), Password: func() (string, error) { return "", nil }})
	if err != nil {
		b.t.Fatal(err)
	}
	if trusted {
		b.keys(KeysRequest{Do: "add", Name: name, Text: b.public(name)})
	}
	return report.Key
}

func (b *trustBed) public(name string) []byte {
	b.t.Helper()
	text, err := os.ReadFile(filepath.Join(b.dir, name+".pub"))
	if err != nil {
		b.t.Fatal(err)
	}
	return text
}

func (b *trustBed) keys(req KeysRequest) {
	b.t.Helper()
	if _, err := (&Engine{}).Run(b.t.Context(), Request{Verb: "key", Root: b.root, Keys: &req}, Events{}); err != nil {
		b.t.Fatalf("key %s: %v", req.Do, err)
	}
}

func parseID(t *testing.T, s string) trust.KeyID {
	t.Helper()
	id, err := trust.ParseKeyID(s)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// update makes a signed tree whose one file holds content.
func (b *trustBed) update(key string, h trust.Head, content string) string {
	b.t.Helper()
	if h.Name == "" {
		h.Name = "app"
	}
	dir := filepath.Join(b.dir, fmt.Sprintf("%s-%d-%s", h.Name, h.Sequence, content))
	b.write(dir, "opt/app/file", content)
	b.sign(key, dir, h)
	return "tree:" + dir
}

func (b *trustBed) sign(key, target string, h trust.Head) {
	b.t.Helper()
	if _, err := Sign(b.t.Context(), SignRequest{Target: target, Key: filepath.Join(b.dir, key+".key"), Head: h}); err != nil {
		b.t.Fatal(err)
	}
}

func (b *trustBed) do(verb, source string) error {
	_, err := (&Engine{Clock: b.clock}).Run(b.t.Context(), Request{Verb: verb, Root: b.root, Source: source}, Events{})
	return err
}

func (b *trustBed) accept(source string) {
	b.t.Helper()
	if err := b.do("apply", source); err != nil {
		b.t.Errorf("apply %s: %v", filepath.Base(source), err)
	}
}

// refuse wants a plan and an apply refused, with nothing changed.
func (b *trustBed) refuse(source, want string) {
	b.t.Helper()
	before := b.read("opt/app/file")
	for _, verb := range []string{"plan", "apply"} {
		err := b.do(verb, source)
		if !errors.Is(err, change.ErrVerification) || !strings.Contains(err.Error(), want) {
			b.t.Errorf("%s %s = %v; want ErrVerification with %q", verb, filepath.Base(source), err, want)
		}
	}
	if after := b.read("opt/app/file"); after != before {
		b.t.Errorf("a refused update changed the file from %q to %q", before, after)
	}
}

func (b *trustBed) floor(name string) uint64 {
	b.t.Helper()
	dir, err := sys.OpenRoot(filepath.Join(b.root, ".liveupd"))
	if err != nil {
		b.t.Fatal(err)
	}
	defer dir.Close()
	st, err := trust.ReadState(dir)
	if err != nil {
		b.t.Fatal(err)
	}
	return st.Floors[name].Sequence
}

func TestReplayAndDowngrade(t *testing.T) {
	b := newTrustBed(t)
	b.key("a", true)
	one, two := b.update("a", trust.Head{Sequence: 1}, "1"), b.update("a", trust.Head{Sequence: 2}, "2")
	b.accept(one)
	b.accept(two)
	const older = `it is older than what this root has seen: "app" (sequence 1), and "app" (sequence 2) was applied before`
	b.refuse(one, older)
	b.refuse(b.update("a", trust.Head{}, "none"), "older than what this root has seen")
	// The same again, and one of another name, may come.
	b.accept(two)
	b.accept(b.update("a", trust.Head{Name: "other", Sequence: 1}, "o"))
	// A rollback is of this machine's own, and lowers nothing.
	for range 2 {
		if err := b.do("rollback", ""); err != nil {
			t.Fatal(err)
		}
	}
	if got := b.read("opt/app/file"); got != "1" {
		t.Fatalf("after two rollbacks the file holds %q", got)
	}
	b.refuse(one, older)
	b.accept(two)
	// The negative control: without what was recorded the replay is accepted.
	if err := os.Remove(filepath.Join(b.root, ".liveupd", trust.StateFile)); err != nil {
		t.Fatal(err)
	}
	b.accept(one)
	// What was recorded and is damaged is not taken for nothing.
	if err := os.WriteFile(filepath.Join(b.root, ".liveupd", trust.StateFile), []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.refuse(two, "cannot read which updates were seen")
}

// An update that is there already is seen like one that was applied.
func TestFloorOfNothingToDo(t *testing.T) {
	b := newTrustBed(t)
	b.key("a", true)
	b.accept(b.update("a", trust.Head{Sequence: 5}, "old"))
	if got := b.floor("app"); got != 5 {
		t.Errorf("the floor is %d; want 5", got)
	}
}

// An update that is not verified in the end raises nothing: it failed, or nobody has signed it.
func TestFloorOnlyAfterVerified(t *testing.T) {
	b := newTrustBed(t)
	b.key("a", true)
	b.accept(b.update("a", trust.Head{Sequence: 1}, "1"))
	two := b.update("a", trust.Head{Sequence: 2}, "2")
	if err := b.do("plan", two); err != nil || b.floor("app") != 1 {
		t.Errorf("plan: %v; the floor is %d", err, b.floor("app"))
	}
	e := &Engine{Kernel: sys.WithHook(func(c sys.Call) sys.Fault {
		if c.Name == "renameat2" && c.Flags&sys.RenameExchange != 0 {
			return sys.Fault{Err: syscall.EIO}
		}
		return sys.Fault{}
	})}
	if _, err := e.Run(t.Context(), Request{Verb: "apply", Root: b.root, Source: two}, Events{}); err == nil {
		t.Error("the failing apply succeeded")
	}
	if err := b.do("recover", ""); err != nil {
		t.Fatal(err)
	}
	if got := b.read("opt/app/file"); got != "1" || b.floor("app") != 1 {
		t.Errorf("after a failed apply the file holds %q and the floor is %d", got, b.floor("app"))
	}
	left, err := filepath.Glob(filepath.Join(b.root, ".liveupd", trust.ClaimPrefix+"*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	b.write(b.source, "opt/app/file", "unsigned")
	b.write(b.source, "liveupd.toml", "name = 'app'\nsequence = 9\n")
	b.must(Request{Verb: "apply"})
	if got := b.floor("app"); got != 1 {
		t.Errorf("after an unsigned update the floor is %d; want 1", got)
	}
	b.accept(two)
}

// The negative control: an update whose claim was not noted raises nothing, and the one
// before it is accepted again.
func TestFloorThatIsNotRaised(t *testing.T) {
	b := newTrustBed(t)
	b.key("a", true)
	one, two := b.update("a", trust.Head{Sequence: 1}, "1"), b.update("a", trust.Head{Sequence: 2}, "2")
	b.accept(one)
	skipped := 0
	e := &Engine{Kernel: sys.WithHook(func(c sys.Call) sys.Fault {
		if c.Name == "renameat2" && strings.HasPrefix(c.To, trust.ClaimPrefix) {
			skipped++
			return sys.Fault{Skip: true}
		}
		return sys.Fault{}
	})}
	if _, err := e.Run(t.Context(), Request{Verb: "apply", Root: b.root, Source: two}, Events{}); err != nil {
		t.Fatal(err)
	}
	b.accept(one)
	if got := b.read("opt/app/file"); got != "1" || skipped != 1 {
		t.Errorf("the file holds %q, %d claims were skipped", got, skipped)
	}
}

// Wherever a run dies: once the new tree stands, the old update is refused, and
// not before.
func TestFloorWhereverARunDies(t *testing.T) {
	if testing.Short() {
		t.Skip("a run for each call: not in the fast loop")
	}
	tried, raised := 0, 0
	for n := 0; ; n++ {
		b := newTrustBed(t)
		b.key("a", true)
		one, two := b.update("a", trust.Head{Sequence: 1}, "1"), b.update("a", trust.Head{Sequence: 2}, "2")
		b.accept(one)
		calls := 0
		e := &Engine{Kernel: sys.WithHook(func(sys.Call) sys.Fault {
			if calls++; calls > n {
				return sys.Fault{Err: syscall.EIO}
			}
			return sys.Fault{}
		})}
		_, _ = e.Run(t.Context(), Request{Verb: "apply", Root: b.root, Source: two}, Events{}) // it dies somewhere
		if calls <= n {
			break
		}
		tried++
		if err := b.do("recover", ""); err != nil {
			t.Fatalf("dead after %d calls: recover: %v", n, err)
		}
		switch got := b.read("opt/app/file"); got {
		case "2":
			raised++
			b.refuse(one, "older than what this root has seen")
		case "1":
			if err := b.do("plan", one); err != nil || b.floor("app") != 1 {
				t.Errorf("dead after %d calls: the old tree stands, and the floor is %d: %v", n, b.floor("app"), err)
			}
		default:
			t.Errorf("dead after %d calls: the file holds %q", n, got)
		}
		if t.Failed() {
			t.Fatalf("dead after %d calls", n)
		}
	}
	t.Logf("%d deaths, %d with the new tree", tried, raised)
	if tried < 20 || raised < 2 || raised == tried {
		t.Error("this tries too little")
	}
}

// Update 1, by the old key, brings the new one; update 2, by the new one, revokes the old.
func TestRotation(t *testing.T) {
	b := newTrustBed(t)
	a := parseID(t, b.key("a", true))
	b.key("b", false)
	two := b.update("b", trust.Head{Sequence: 2, Revokes: []trust.KeyID{a}}, "2")
	b.refuse(two, "no key in")
	one := filepath.Join(b.dir, "one")
	b.write(one, "opt/app/file", "1")
	b.write(one, "etc/liveupd/keys/b.pub", string(b.public("b")))
	b.sign("a", one, trust.Head{Name: "app", Sequence: 1})
	b.accept("tree:" + one)
	three := b.update("a", trust.Head{Sequence: 3}, "3")
	if err := b.do("plan", three); err != nil {
		t.Fatalf("before it is revoked the old key counts: %v", err)
	}
	plan, err := (&Engine{}).Run(t.Context(), Request{Verb: "plan", Root: b.root, Source: two}, Events{})
	if err != nil || !strings.Contains(strings.Join(plan.(*change.Plan).Warnings, "\n"), "revokes key "+a.String()) {
		t.Errorf("the plan does not tell which key goes: %+v, %v", plan, err)
	}
	if err := b.do("plan", three); err != nil {
		t.Fatalf("a plan has revoked a key: %v", err)
	}
	b.accept(two)
	b.refuse(three, fmt.Sprintf("signed by a revoked key: key %s was revoked on", a))
	if err := os.WriteFile(filepath.Join(b.root, "etc/liveupd/keys/again.pub"), b.public("a"), 0o644); err != nil {
		t.Fatal(err)
	}
	b.refuse(three, "was revoked on")
	// A rollback does not bring it back.
	if err := b.do("rollback", ""); err != nil {
		t.Fatal(err)
	}
	b.refuse(three, "was revoked on")
	b.accept(two)
}

// Nobody revokes with an unsigned update, nor himself; an update that fails revokes nothing.
func TestRevocationByUpdate(t *testing.T) {
	b := newTrustBed(t)
	a, c := parseID(t, b.key("a", true)), parseID(t, b.key("c", true))
	b.write(b.source, "opt/app/file", "unsigned")
	b.write(b.source, "liveupd.toml", fmt.Sprintf("name = 'x'\nrevokes = ['%s']\n", a))
	b.must(Request{Verb: "apply"})
	b.accept(b.update("a", trust.Head{Sequence: 1, Revokes: []trust.KeyID{a}}, "self"))
	b.accept(b.update("a", trust.Head{Sequence: 2}, "still"))
	// By liveupd.toml, which the manifest lists.
	dir := filepath.Join(b.dir, "toml")
	b.write(dir, "opt/app/file", "toml")
	b.write(dir, "liveupd.toml", fmt.Sprintf("name = 'app'\nsequence = 3\nrevokes = ['%s']\nexpires = 2999-01-01T00:00:00Z\n", a))
	b.sign("c", dir, trust.Head{})
	three := b.update("a", trust.Head{Sequence: 3}, "3")
	ctx, cancel := context.WithCancel(t.Context())
	_, err := (&Engine{}).Run(ctx, Request{Verb: "apply", Root: b.root, Source: "tree:" + dir}, Events{
		Confirm: func(*change.Plan) bool { cancel(); return true },
	})
	if err == nil {
		t.Error("the interrupted apply succeeded")
	}
	if err := b.do("plan", three); err != nil {
		t.Errorf("an update that was not applied has revoked a key: %v", err)
	}
	b.accept("tree:" + dir)
	b.refuse(three, "was revoked on")
	b.accept(b.update("c", trust.Head{Sequence: 4}, "4"))
	b.keys(KeysRequest{Do: "revoke", Which: c.String(), Reason: "for the test"})
	b.refuse(b.update("c", trust.Head{Sequence: 5}, "5"), "(for the test)")
}

// No update takes the list of revoked keys away, or replaces it.
func TestUpdateShipsRevoked(t *testing.T) {
	b := newTrustBed(t)
	b.key("a", true)
	b.key("b", true)
	b.keys(KeysRequest{Do: "revoke", Which: "b"})
	dir := filepath.Join(b.dir, "evil")
	b.write(dir, "opt/app/file", "1")
	b.write(dir, "etc/liveupd/keys/revoked", "# nobody\n")
	b.sign("a", dir, trust.Head{Name: "app", Sequence: 1})
	before := b.read("etc/liveupd/keys/revoked")
	b.accept("tree:" + dir)
	if after := b.read("etc/liveupd/keys/revoked"); after != before {
		t.Errorf("the list was %q and is %q", before, after)
	}
	b.refuse(b.update("b", trust.Head{Sequence: 2}, "2"), "revoked")
}

func TestExpiry(t *testing.T) {
	b := newTrustBed(t)
	b.key("a", true)
	at := func(s string) time.Time {
		tm, err := time.Parse(time.DateOnly, s)
		if err != nil {
			t.Fatal(err)
		}
		return tm
	}
	now, build := at("2026-06-01"), at("2026-01-01")
	b.clock = trust.Clock{Now: func() time.Time { return now }, Build: func() time.Time { return build }}
	may := b.update("a", trust.Head{Sequence: 1, Signed: at("2025-12-01").Unix(), Expires: at("2026-05-31").Unix()}, "may")
	b.refuse(may, `"app" (sequence 1) expired on 2026-05-31 00:00:00 UTC, and it is 2026-06-01 00:00:00 UTC by the clock`)
	now = at("2026-05-30")
	b.accept(may)
	// A clock that is set back brings nothing back: the program knows its own age.
	now = time.Unix(0, 0)
	december := b.update("a", trust.Head{Sequence: 2, Signed: at("2025-11-01").Unix(), Expires: at("2025-12-31").Unix()}, "december")
	b.refuse(december, "by the age of this program (the clock is behind)")
	// Nor does it where a newer update was seen.
	b.accept(b.update("a", trust.Head{Sequence: 2, Signed: at("2026-08-01").Unix(), Expires: at("2027-01-01").Unix()}, "august"))
	b.refuse(b.update("a", trust.Head{Sequence: 3, Signed: at("2026-06-01").Unix(), Expires: at("2026-07-01").Unix()}, "july"), "by the newest update that was seen")
	// The negative control: with the clock alone it would have come.
	build = time.Unix(0, 0)
	if err := os.Remove(filepath.Join(b.root, ".liveupd", trust.StateFile)); err != nil {
		t.Fatal(err)
	}
	b.accept(december)
}

// A head that was changed after it was signed is refused.
func TestTamperedHead(t *testing.T) {
	for key, change := range map[string][2]string{
		"sequence": {"sequence 4\n", "sequence 9\n"},
		"expires":  {"expires 4000000000\n", "expires 4999999999\n"},
		"no end":   {"expires 4000000000\n", ""},
		"revokes":  {"toml -\n", "revokes 0000000000000001\ntoml -\n"},
		"name":     {"name app\n", "name apt\n"},
	} {
		t.Run(key, func(t *testing.T) {
			b := newTrustBed(t)
			b.key("a", true)
			u := b.update("a", trust.Head{Sequence: 4, Expires: 4_000_000_000}, "4")
			name := filepath.Join(strings.TrimPrefix(u, "tree:"), "liveupd.manifest")
			text, err := os.ReadFile(name)
			if err != nil || !bytes.Contains(text, []byte(change[0])) {
				t.Fatalf("%q, %v", text, err)
			}
			if err := os.WriteFile(name, bytes.Replace(text, []byte(change[0]), []byte(change[1]), 1), 0o644); err != nil {
				t.Fatal(err)
			}
			b.refuse(u, "a.pub does not confirm it")
		})
	}
}

// The signature beside an archive says which update it is; the archive may say it, too.
func TestArchiveHead(t *testing.T) {
	b := newTrustBed(t)
	b.key("a", true)
	archive := func(name string, h trust.Head, files ...string) string {
		file := filepath.Join(b.dir, name)
		if err := os.WriteFile(file, archiveOf(t, files...), 0o644); err != nil {
			t.Fatal(err)
		}
		b.sign("a", file, h)
		return "tar:" + file
	}
	three := archive("3.tar", trust.Head{Name: "app", Sequence: 3}, "opt/app/file", "3")
	b.accept(archive("4.tar", trust.Head{Name: "app", Sequence: 4, Expires: 4_000_000_000}, "opt/app/file", "4"))
	if got := b.floor("app"); got != 4 || b.read("opt/app/file") != "4" {
		t.Errorf("the floor is %d, the file holds %q", got, b.read("opt/app/file"))
	}
	b.refuse(three, "older than what this root has seen")
	b.refuse(archive("toml.tar", trust.Head{}, "liveupd.toml", "name = 'app'\nsequence = 2\n", "opt/app/file", "2"), "older than what this root has seen")
	b.refuse(archive("old.tar", trust.Head{Name: "app", Sequence: 5, Signed: 5, Expires: 9}, "opt/app/file", "5"), "expired on")
	b.refuse(archive("both.tar", trust.Head{Sequence: 6}, "liveupd.toml", "name = 'app'\nsequence = 7\n", "opt/app/file", "5"), "disagree: sequence")
	// Changed after it was confirmed.
	u := archive("5.tar", trust.Head{Name: "app", Sequence: 5}, "opt/app/file", "5")
	other := archiveOf(t, "opt/app/file", "evil")
	e := &Engine{Kernel: sys.WithHook(func(c sys.Call) sys.Fault {
		if c.Name == "mkdirat" && strings.HasSuffix(c.Path, partSuffix) {
			if err := os.WriteFile(filepath.Join(b.dir, "5.tar"), other, 0o644); err != nil {
				t.Error(err)
			}
		}
		return sys.Fault{}
	})}
	if _, err := e.Run(t.Context(), Request{Verb: "apply", Root: b.root, Source: u}, Events{}); !errors.Is(err, change.ErrVerification) && !errors.Is(err, change.ErrDrift) {
		t.Errorf("an archive that was exchanged after it was confirmed: %v", err)
	}
	if got := b.read("opt/app/file"); got != "4" {
		t.Errorf("the file holds %q", got)
	}
}

// The same tree, key and time give the same bytes.
func TestSignIsReproducible(t *testing.T) {
	b := newTrustBed(t)
	b.key("a", true)
	b.write(b.source, "opt/app/file", "1")
	tar := filepath.Join(b.dir, "x.tar")
	if err := os.WriteFile(tar, archiveOf(t, "f", "x"), 0o644); err != nil {
		t.Fatal(err)
	}
	h := trust.Head{Name: "app", Sequence: 1, Signed: 1_700_000_000, Expires: 1_900_000_000, Revokes: []trust.KeyID{2, 1, 2}}
	var first map[string]string
	for range 2 {
		b.sign("a", b.source, h)
		b.sign("a", tar, h)
		got := map[string]string{}
		for _, name := range []string{filepath.Join(b.source, "liveupd.manifest"), filepath.Join(b.source, "liveupd.manifest.minisig"), tar + ".minisig"} {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			got[name] = string(text)
		}
		for name, text := range first {
			if got[name] != text {
				t.Errorf("%s: %q, then %q", name, text, got[name])
			}
		}
		first = got
	}
	// What liveupd.toml says is not said otherwise.
	b.write(b.source, "liveupd.toml", "name = 'app'\nsequence = 2\n")
	if _, err := Sign(t.Context(), SignRequest{Target: b.source, Key: filepath.Join(b.dir, "a.key"), Head: h}); err == nil || !strings.Contains(err.Error(), "sequence") {
		t.Errorf("Sign with two sequences: %v", err)
	}
	// A key is not overwritten.
	if _, err := Keygen(KeygenRequest{Name: filepath.Join(b.dir, "a"), Password: func() (string, error) { return "", nil }}); err == nil {
		t.Error("keygen replaced a key")
	}
	if st, err := os.Stat(filepath.Join(b.dir, "a.key")); err != nil || st.Mode().Perm() != fs.FileMode(0o600) {
		t.Errorf("the secret key: %v, %v", st, err)
	}
}
