package engine

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/nsmount"
)

func TestMain(m *testing.M) {
	if nsmount.ChildMain() {
		return
	}
	os.Exit(m.Run()) //nolint:forbidigo // a TestMain has to
}

// bed is a root and a source below a temporary folder.
type bed struct {
	t            *testing.T
	root, source string
	image        string // of the root's file system, where it has one of its own
}

func newBed(t *testing.T) *bed {
	dir := t.TempDir()
	b := &bed{t: t, root: filepath.Join(dir, "root"), source: filepath.Join(dir, "source")}
	for _, d := range []string{b.root, b.source} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func (b *bed) write(dir, name, content string) {
	b.t.Helper()
	name = filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bed) read(name string) string {
	b.t.Helper()
	data, err := os.ReadFile(filepath.Join(b.root, name))
	if errors.Is(err, os.ErrNotExist) {
		return "-"
	}
	if err != nil {
		b.t.Fatal(err)
	}
	return string(data)
}

func (b *bed) run(req Request) (any, error) {
	b.t.Helper()
	req.Root = b.root
	if req.Verb == "apply" || req.Verb == "plan" {
		req.Source, req.AllowUnsigned = "tree:"+b.source, true
	}
	return (&Engine{}).Run(b.t.Context(), req, Events{})
}

func (b *bed) must(req Request) any {
	b.t.Helper()
	result, err := b.run(req)
	if err != nil {
		b.t.Fatalf("%s: %v", req.Verb, err)
	}
	return result
}

func (b *bed) generations() []change.Generation {
	return b.must(Request{Verb: "history"}).([]change.Generation)
}

func TestApplyAndRollbackOfSeveral(t *testing.T) {
	b := newBed(t)
	b.write(b.root, "opt/app/file", "0")
	for _, v := range []string{"1", "2", "3"} {
		b.write(b.source, "opt/app/file", v)
		if r := b.must(Request{Verb: "apply", Keep: 3}).(*change.Report); r.Result != "done" {
			t.Fatalf("apply of %s: %+v", v, r)
		}
	}
	if r := b.must(Request{Verb: "apply"}).(*change.Report); r.Result != "nothing-to-do" {
		t.Errorf("the same again: %s; want nothing-to-do", r.Result)
	}
	list := b.generations()
	b.must(Request{Verb: "rollback", ID: list[1].ID})
	if got := b.read("opt/app/file"); got != "1" {
		t.Errorf("after the rollback of two the file holds %q; want 1", got)
	}
	if _, err := b.run(Request{Verb: "rollback", ID: "nonsense"}); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("rollback of an unknown generation: %v", err)
	}
}

func TestKeepsTwoGenerations(t *testing.T) {
	b := newBed(t)
	for _, v := range []string{"1", "2", "3", "4"} {
		b.write(b.source, "opt/app/file", v)
		b.must(Request{Verb: "apply"})
	}
	kept := 0
	for _, g := range b.generations() {
		if g.Retained {
			kept++
		}
	}
	if kept != KeepGenerations {
		t.Errorf("%d generations are kept; want %d", kept, KeepGenerations)
	}
	bases, err := filepath.Glob(filepath.Join(b.root, ".liveupd/base-*"))
	if err != nil || len(bases) > KeepGenerations+1 {
		t.Errorf("records %v, %v; want at most %d", bases, err, KeepGenerations+1)
	}
}

// The three-way rule of /etc decides by the record of the last update, not by
// one that was never committed or was taken back.
func TestRecordThatCounts(t *testing.T) {
	b := newBed(t)
	b.write(b.source, "etc/app.conf", "one")
	b.must(Request{Verb: "apply"})
	b.write(b.root, "etc/app.conf", "mine")
	b.write(b.source, "etc/app.conf", "two")
	b.must(Request{Verb: "apply"})
	if got := b.read("etc/app.conf") + " " + b.read("etc/app.conf.liveupd-new"); got != "mine two" {
		t.Fatalf("the file and the one beside hold %q; want mine two", got)
	}

	t.Run("an orphan's does not", func(t *testing.T) {
		b.write(b.root, "etc/app.conf", "two")
		b.must(Request{Verb: "apply"})
		store := filepath.Join(b.root, ".liveupd")
		bases, err := filepath.Glob(filepath.Join(store, "base-*"))
		if err != nil || len(bases) == 0 {
			t.Fatalf("no records: %v", err)
		}
		slices.Sort(bases)
		// What a kill after the record was written, and a recovery without the
		// engine, leave behind.
		orphan := filepath.Join(store, "base-99990101-000000.000000-deadbeef")
		other := newBed(t)
		other.write(other.source, "etc/app.conf", "never committed")
		other.must(Request{Verb: "apply"})
		foreign, err := filepath.Glob(filepath.Join(other.root, ".liveupd/base-*"))
		if err != nil || len(foreign) != 1 {
			t.Fatalf("records %v, %v", foreign, err)
		}
		data, err := os.ReadFile(foreign[0])
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(orphan, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if v := b.must(Request{Verb: "verify"}).(*change.VerifyReport); strings.Contains(v.Generation, "deadbeef") || v.Damaged+v.Machine > 0 {
			t.Errorf("verify goes by %s: %+v", v.Generation, v)
		}
		b.must(Request{Verb: "apply"})
		if _, err := os.Stat(orphan); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the orphan's record is still there: %v", err)
		}
	})
}

func TestRefusals(t *testing.T) {
	b := newBed(t)
	b.write(b.source, "opt/app/file", "x")
	for name, tt := range map[string]struct {
		req  Request
		is   error
		text string
	}{
		"other plan":        {Request{Verb: "apply", Expect: "0123"}, change.ErrDrift, "0123"},
		"check of a tree":   {Request{Verb: "check"}, ErrUsage, "--root"},
		"nothing to roll":   {Request{Verb: "rollback"}, nil, "no committed update"},
		"nothing to verify": {Request{Verb: "verify"}, nil, "no committed update"},
		"unknown verb":      {Request{Verb: "explode"}, ErrUsage, "explode"},
		"restart of a tree": {Request{Verb: "restart"}, ErrUsage, "--root"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := b.run(tt.req)
			if err == nil || tt.is != nil && !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("error %v; want %v with %q", err, tt.is, tt.text)
			}
			if got := b.read("opt/app/file"); got != "-" {
				t.Errorf("the root has %q", got)
			}
		})
	}
	b.write(b.root, "sub/file", "x")
	for source, text := range map[string]string{
		"": "no source", "nonsense": "KIND:WHERE", "tree:": "KIND:WHERE", "tape:/dev/st0": "tape",
		"tree:" + b.root + "/sub": "inside",
	} {
		_, err := (&Engine{}).Run(t.Context(), Request{Verb: "plan", Root: b.root, Source: source, AllowUnsigned: true}, Events{})
		if !errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), text) {
			t.Errorf("source %q: %v; want a usage error with %q", source, err, text)
		}
	}
}

func TestInterruptBeforeTheCommit(t *testing.T) {
	b := newBed(t)
	b.write(b.source, "opt/app/file", "x")
	ctx, cancel := context.WithCancel(t.Context())
	ev := Events{Emit: func(v any) {
		if _, ok := v.(*change.Plan); ok {
			cancel()
		}
	}}
	result, err := (&Engine{}).Run(ctx, Request{Verb: "apply", Root: b.root, Source: "tree:" + b.source, AllowUnsigned: true}, ev)
	if !errors.Is(err, ErrNothingCommitted) || result.(*change.Report).Result != "undone" {
		t.Errorf("Run = %+v, %v; want undone", result, err)
	}
	if got := b.read("opt/app/file"); got != "-" {
		t.Errorf("the root has %q", got)
	}
	if list := b.generations(); len(list) > 0 {
		t.Errorf("left behind: %+v", list)
	}
}

func TestOwed(t *testing.T) {
	a, z := change.Step{Do: "restart", Target: "a"}, change.Step{Do: "start", Target: "z"}
	rec := func(st change.Step, result string) change.StepResult {
		return change.StepResult{Step: st, Result: result}
	}
	for name, tt := range map[string]struct {
		records []change.StepResult
		want    []change.Step
	}{
		"nothing was promised":      {[]change.StepResult{rec(a, "begun"), rec(a, "done")}, nil},
		"promised, not begun":       {[]change.StepResult{rec(a, "done"), rec(a, promised), rec(z, promised)}, []change.Step{a, z}},
		"begun is not carried out":  {[]change.StepResult{rec(a, promised), rec(a, "begun")}, []change.Step{a}},
		"one of two":                {[]change.StepResult{rec(a, promised), rec(z, promised), rec(a, "begun"), rec(a, "done")}, []change.Step{z}},
		"all, one of them failed":   {[]change.StepResult{rec(a, promised), rec(z, promised), rec(a, "failed"), rec(z, "skipped")}, nil},
		"promised twice, once paid": {[]change.StepResult{rec(a, promised), rec(a, promised), rec(a, "done")}, []change.Step{a}},
	} {
		if got := owed(tt.records); !slices.Equal(got, tt.want) {
			t.Errorf("%s: owed = %v; want %v", name, got, tt.want)
		}
	}
}

// The worker's half of the conversation ends every question when the caller is gone.
func TestWorkerWithoutCaller(t *testing.T) {
	in, caller := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w := &workerSide{ctx: ctx, out: json.NewEncoder(io.Discard), answers: make(chan bool, 1)}
	go w.listen(bufio.NewReader(in), cancel)
	if _, err := io.WriteString(caller, "yes\n"); err != nil {
		t.Fatal(err)
	}
	if !w.confirm(&change.Plan{}) {
		t.Error("yes was not heard")
	}
	caller.Close()
	answered := make(chan bool)
	go func() { answered <- w.confirm(&change.Plan{}) }()
	select {
	case yes := <-answered:
		if yes {
			t.Error("a caller that is gone agreed")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the question to a caller that is gone is never answered")
	}
	if ctx.Err() != nil {
		t.Error("a run that was agreed to was cancelled when its caller went")
	}
}

func TestErrorsCrossTheWorker(t *testing.T) {
	for name, cause := range causes {
		var out strings.Builder
		w := &workerSide{out: json.NewEncoder(&out)}
		w.result(&change.Report{Result: "failed"}, change.WithHint(errors.Join(errors.New("text"), cause), "do this"))
		result, got, err := relay(strings.NewReader(out.String()), io.Discard, Events{})
		hint, ok := errors.AsType[*change.HintError](err)
		if !got || !errors.Is(err, cause) || !ok || hint.Hint != "do this" || result.(*change.Report).Result != "failed" {
			t.Errorf("%s: %v, %v, %v", name, result, got, err)
		}
	}
}
