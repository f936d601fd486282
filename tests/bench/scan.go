package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// load is a machine's size for the scan: units, and processes in all of them.
type load struct{ units, processes int }

var loads = []load{{20, 100}, {100, 500}, {400, 2000}}

// changes are the numbers of changed paths that a plan is made for.
var changes = []int{10, 100, 1000, 10000}

// preloaded is how many libraries each process maps beside its own: with some five maps
// each that is a large daemon's address space.
const preloaded = 66

// loader is what each unit runs: one shell that goes on as many processes, each with the
// mappings of all libraries.
const loader = `[Service]
Type=exec
EnvironmentFile=/etc/bench.env
ExecStart=/bin/sh -c 'i=1; while [ $i -lt $EACH ]; do (: </run/bench-INSTANCE) & i=$((i+1)); done; : </run/bench-INSTANCE'
ExecStartPre=/usr/bin/mkfifo /run/bench-INSTANCE
`

// scan measures what it costs to find who runs old code: `check` beside needrestart and
// checkrestart in the same machine in the same state, and the whole of `apply --plan` by
// the number of changed paths. One library that every process maps is replaced before.
func (b *bench) scan(roots string) error {
	from := filepath.Join(roots, "peers")
	if !exists(from) {
		return fmt.Errorf("there is no root %s: run tests/setup/root.sh peers", from)
	}
	from, err := filepath.EvalSymlinks(from)
	if err != nil {
		return err
	}
	for i, l := range loads {
		root := filepath.Join(b.dir, fmt.Sprintf("machine-%d", l.processes))
		if err := b.scanOf(from, root, l, i > 0); err != nil {
			return fmt.Errorf("with %d units: %w", l.units, err)
		}
		if err := removeAll(root); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) scanOf(from, root string, l load, byChanges bool) (err error) {
	var lib string
	g, err := b.boot(from, root, func(root string) (err error) {
		lib, err = b.prepareLoad(root, l)
		return err
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.Close()) }()
	if err := b.planOf(g, l, lib, byChanges); err != nil {
		return err
	}
	if err := b.freshOf(g, l); err != nil {
		return err
	}
	return b.checkOf(g, l, lib)
}

// prepareLoad puts the units into the root, and the library that is replaced later.
func (b *bench) prepareLoad(root string, l load) (lib string, err error) {
	libs, err := filepath.Glob(filepath.Join(root, "usr/lib/*-linux-gnu/lib*.so.*"))
	if err != nil {
		return "", err
	}
	seen := map[string]bool{}
	var preload []string
	for _, f := range libs {
		real, err := filepath.EvalSymlinks(f)
		base := filepath.Base(real)
		// Those of the C library bind to each other's versions, and some refuse to be preloaded.
		if err != nil || seen[real] || strings.Contains(base, "libc.so") || strings.Contains(base, "libpthread") || strings.Contains(base, "libthread_db") ||
			strings.Contains(base, "libmvec") || strings.Contains(base, "libnss") || strings.Contains(base, "libpcprofile") || strings.Contains(base, "libSegFault") {
			continue
		}
		seen[real] = true
		preload = append(preload, strings.TrimPrefix(real, root))
	}
	if len(preload) < preloaded {
		return "", fmt.Errorf("%s has %d libraries only", root, len(preload))
	}
	preload = preload[:preloaded]
	for _, p := range preload {
		if strings.Contains(p, "libbz2") || strings.Contains(p, "libapt") {
			lib = p
			break
		}
	}
	if lib == "" {
		lib = preload[0]
	}
	env := fmt.Sprintf("EACH=%d\nLD_PRELOAD=%s\n", l.processes/l.units, strings.Join(preload, ":"))
	dir := filepath.Join(root, "etc/systemd/system")
	wants := filepath.Join(dir, "multi-user.target.wants")
	program, err := os.ReadFile(b.liveupd)
	if err != nil {
		return "", err
	}
	err = errors.Join(
		os.WriteFile(filepath.Join(root, "etc/bench.env"), []byte(env), 0o644),
		os.WriteFile(filepath.Join(root, "usr/local/bin/liveupd"), program, 0o755),
		os.MkdirAll(wants, 0o755))
	for i := range l.units {
		// Units of their own: instances of one template would be one file for all.
		name := fmt.Sprintf("bench-%d.service", i)
		unit := strings.ReplaceAll(loader, "INSTANCE", fmt.Sprint(i))
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), []byte(unit), 0o644), os.Symlink("../"+name, filepath.Join(wants, name)))
	}
	return lib, err
}

// contender is one command to be measured.
type contender struct {
	name  string
	args  []string
	check func(out []byte) error
}

// race runs the contenders in turn and adds their rows; the ratio is to the first.
func (b *bench) race(g *guest, label string, list []contender) error {
	times, work, peaks := make([][]float64, len(list)), make([][]float64, len(list)), make([][]float64, len(list))
	for i := range b.runs + 1 {
		for c, k := range list {
			s, err := b.timed("nsenter", g.enter(k.args...)...)
			if err == nil {
				err = k.check(s.out)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", k.name, err)
			}
			if i == 0 {
				continue // the caches of each
			}
			times[c], work[c], peaks[c] = append(times[c], s.MS), append(work[c], s.CPUMS), append(peaks[c], s.PeakMB)
		}
	}
	own := row{Samples: times[0]}.median()
	// The processors' time tells more than the clock where others are at work.
	for _, m := range []struct {
		what    string
		samples [][]float64
	}{{label, times}, {"processor time of it", work}} {
		first := row{Samples: m.samples[0]}.median()
		for c, k := range list {
			r := row{What: m.what, Contender: k.name, Unit: "ms", Samples: m.samples[c]}
			if c > 0 {
				r.Ratio = first / r.median()
			}
			b.rows = append(b.rows, r)
		}
	}
	b.rows = append(b.rows, row{What: "peak memory of it", Contender: list[0].name, Unit: "MB", Samples: peaks[0]})
	fmt.Fprintf(os.Stderr, "bench: %s: %.0f ms\n", label, own)
	return nil
}

// freshOf asks while nobody runs old code, as it is most of the time.
func (b *bench) freshOf(g *guest, l load) error {
	any := func([]byte) error { return nil }
	return b.race(g, fmt.Sprintf("nobody runs old code, %d processes in %d units", l.processes, l.units), []contender{
		{"liveupd check", []string{"/usr/local/bin/liveupd", "check", "--json"}, func(out []byte) error {
			var r change.CheckReport
			if err := json.Unmarshal(lastLine(out), &r); err != nil {
				return err
			}
			if r.Examined < l.processes || r.Incomplete {
				return fmt.Errorf("it looked at %d processes, incomplete: %v", r.Examined, r.Incomplete)
			}
			return nil
		}},
		{"needrestart -b -r l", []string{"needrestart", "-b", "-r", "l"}, any},
		{"checkrestart -m", []string{"sh", "-c", "checkrestart -m || true"}, any},
	})
}

// checkOf replaces the library by another file of other bytes, and asks who runs the old one.
func (b *bench) checkOf(g *guest, l load, lib string) error {
	at := filepath.Join(g.root, lib)
	content, err := os.ReadFile(at)
	if err != nil {
		return err
	}
	// Bytes behind an ELF object's end change nothing in it; its build ID would say so.
	if err := errors.Join(os.WriteFile(at+".new", scramble(content), 0o644), os.Rename(at+".new", at)); err != nil {
		return err
	}
	found := func(names func(out []byte) int) func([]byte) error {
		return func(out []byte) error {
			if n := names(out); n < l.units {
				return fmt.Errorf("it found %d of %d units: %.300s", n, l.units, out)
			}
			return nil
		}
	}
	lines := func(prefix string) func([]byte) int {
		return func(out []byte) int { return bytes.Count(out, []byte(prefix)) }
	}
	return b.race(g, fmt.Sprintf("who runs old code, %d processes in %d units", l.processes, l.units), []contender{
		{"liveupd check", []string{"/usr/local/bin/liveupd", "check", "--json"}, found(func(out []byte) int {
			var r change.CheckReport
			_ = json.Unmarshal(lastLine(out), &r)
			return len(r.Units)
		})},
		{"needrestart -b -r l", []string{"needrestart", "-b", "-r", "l"}, found(lines("NEEDRESTART-SVC: bench-"))},
		// It exits with 1 where it finds any.
		{"checkrestart -m", []string{"sh", "-c", "checkrestart -m || true"}, found(lines("_COMMAND\tsystemctl try-restart bench-"))},
	})
}

// planOf measures `apply --plan` of a partial tree with the library and other changed files.
func (b *bench) planOf(g *guest, l load, lib string, byChanges bool) error {
	counts := changes
	if !byChanges {
		counts = changes[:1]
	}
	content, err := os.ReadFile(filepath.Join(g.root, lib))
	if err != nil {
		return err
	}
	for _, n := range counts {
		update, live := filepath.Join(g.root, "update"), filepath.Join(g.root, "usr/share/bench")
		if err := errors.Join(makeTree(filepath.Join(update, "usr/share/bench"), n-1, int64(n-1)*2000, 2), makeTree(live, n-1, int64(n-1)*2000, 1)); err != nil {
			return err
		}
		at := filepath.Join(update, lib)
		if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, scramble(content), 0o644)); err != nil {
			return err
		}
		check := func(out []byte) error {
			var p change.Plan
			_ = json.Unmarshal(lastLine(out), &p)
			hit := 0
			for _, u := range p.Units {
				if strings.HasPrefix(u.Unit, "bench-") && u.Action == change.ActionRestart {
					hit++
				}
			}
			if hit != l.units || p.Changes.Replaced < n-n/1000 { // two files of one seed may be equal
				return fmt.Errorf("the plan restarts %d of %d units for %d of %d paths", hit, l.units, p.Changes.Replaced, n)
			}
			return nil
		}
		label := fmt.Sprintf("a plan for %d changed paths, %d processes in %d units", n, l.processes, l.units)
		if err := b.race(g, label, []contender{{"liveupd apply --plan", []string{
			"/usr/local/bin/liveupd", "apply", "--plan", "--json", "--source", "tree:/update", "--allow-unsigned",
		}, check}}); err != nil {
			return err
		}
		if err := removeAll(update, live); err != nil {
			return err
		}
	}
	return nil
}

// scramble changes an ELF object in its last section headers, which no loader reads, and in
// its build ID, so that it is another build to those that compare them.
func scramble(elf []byte) []byte {
	out := slices.Clone(elf)
	if i := bytes.Index(out, []byte("GNU\x00")); i >= 0 && i+8 < len(out) {
		out[i+6] ^= 0xff
	}
	return append(out, 0)
}

func lastLine(out []byte) []byte {
	out = bytes.TrimRight(out, "\n")
	return out[bytes.LastIndexByte(out, '\n')+1:]
}
