package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/liveupd/liveupd/change"
)

type bench struct {
	ctx     context.Context // of the whole run: bench is its frame
	liveupd string
	runs    int
	dir     string // on the disk
	rows    []row
}

// makeTree makes a folder of count files with size bytes in all. The same seed makes the same
// names and sizes; content is random and depends on generation.
func makeTree(root string, count int, size int64, generation uint64) error {
	const perFolder = 50
	sizes := rand.New(rand.NewPCG(1, 1))
	content := rand.New(rand.NewPCG(2, generation))
	average := int(size) / count
	buffer := make([]byte, 2*average+8)
	// rsync takes files of one size and second for equal: generations are days apart.
	built := time.Date(2026, 1, int(generation), 0, 0, 0, 0, time.UTC)
	for i := range count {
		dir := filepath.Join(root, "usr/share/bench", fmt.Sprintf("d%03d", i/(perFolder*50)), fmt.Sprintf("e%04d", i/perFolder))
		if i%perFolder == 0 {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
		}
		n := sizes.IntN(2*average + 1) // evenly from nothing to twice the average
		for j := 0; j < n; j += 8 {
			v := content.Uint64()
			for k := range 8 {
				buffer[j+k] = byte(v >> (8 * k))
			}
		}
		name := filepath.Join(dir, fmt.Sprintf("f%06d", i))
		if err := os.WriteFile(name, buffer[:n], 0o644); err != nil {
			return err
		}
		if err := os.Chtimes(name, built, built); err != nil {
			return err
		}
	}
	return nil
}

// osRelease makes a tree look like the root of a system.
func osRelease(root string) error {
	for _, dir := range []string{"usr/lib", "etc"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(root, "usr/lib/os-release"), []byte("ID=bench\nVERSION_ID=1\n"), 0o644)
}

// apply measures the same change of a root three ways.
func (b *bench) apply(count int, size int64) error {
	base, update := filepath.Join(b.dir, "base"), filepath.Join(b.dir, "update")
	if err := errors.Join(osRelease(base), makeTree(base, count, size, 1), makeTree(update, count, size, 2)); err != nil {
		return err
	}
	root := filepath.Join(b.dir, "root")
	script := func(s string) func() (sample, error) {
		return func() (sample, error) { return b.timed("sh", "-euc", s, "sh", update, root) }
	}
	contenders := []struct {
		name string
		run  func() (sample, error)
	}{
		{"liveupd apply", func() (sample, error) {
			return b.timed(b.liveupd, "apply", "--root", root, "--source", "tree:"+update, "--allow-unsigned", "--yes", "--json")
		}},
		{"cp -a, sync -f", script(`cp -a "$1/." "$2/"; sync -f "$2"`)},
		{"rsync -a", script(`rsync -a "$1/" "$2/"`)},
	}
	const what = "apply"
	times := make([][]float64, len(contenders))
	var swap, peak []float64
	for i := range b.runs {
		for c := range contenders {
			if err := b.freshRoot(base, root, update); err != nil {
				return err
			}
			s, err := contenders[c].run()
			if err != nil {
				return err
			}
			if err := sameFiles(update, root); err != nil {
				return fmt.Errorf("%s did not do its work: %w", contenders[c].name, err)
			}
			times[c] = append(times[c], s.MS)
			if c == 0 {
				window, err := swapWindow(s.out)
				if err != nil {
					return err
				}
				swap, peak = append(swap, window), append(peak, s.PeakMB)
			}
		}
		fmt.Fprintf(os.Stderr, "bench: apply, run %d of %d\n", i+1, b.runs)
	}
	own := row{Samples: times[0]}.median()
	label := fmt.Sprintf("%s of %d changed files, %d MB", what, count, size>>20)
	for c := range contenders {
		r := row{What: label, Contender: contenders[c].name, Unit: "ms", Samples: times[c]}
		if c > 0 {
			r.Ratio = own / r.median()
		}
		b.rows = append(b.rows, r)
	}
	b.rows = append(b.rows,
		row{What: "the swap window of it", Contender: contenders[0].name, Unit: "ms", Samples: swap},
		row{What: "peak memory of it", Contender: contenders[0].name, Unit: "MB", Samples: peak})
	return removeAll(base, update, root)
}

// freshRoot copies the base anew, reads the update once so that it is in the page
// cache, and writes all back.
func (b *bench) freshRoot(base, root, update string) error {
	if err := os.RemoveAll(root); err != nil {
		return err
	}
	if _, err := tool("cp", "-a", base, root); err != nil {
		return err
	}
	if _, err := tool("sh", "-c", `find "$1" -type f -exec cat {} + >/dev/null`, "sh", update); err != nil {
		return err
	}
	return b.settle()
}

// swapWindow reads swap_usec from the report, in milliseconds.
func swapWindow(out []byte) (float64, error) {
	for line := range bytes.Lines(out) {
		var r change.Report
		if json.Unmarshal(line, &r) == nil && r.MessageType == "report" {
			if r.Result != "done" || r.SwapUSec == 0 {
				return 0, fmt.Errorf("the report says %q with a swap window of %d us", r.Result, r.SwapUSec)
			}
			return float64(r.SwapUSec) / 1000, nil
		}
	}
	return 0, errors.New("liveupd printed no report")
}

// sameFiles compares each file of the update with the root's.
func sameFiles(update, root string) error {
	return filepath.WalkDir(update, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(update, path)
		if err != nil {
			return err
		}
		want, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		got, err := os.ReadFile(filepath.Join(root, rel))
		if err != nil {
			return err
		}
		if !bytes.Equal(want, got) {
			return fmt.Errorf("%s is not the update's", rel)
		}
		return nil
	})
}

// emptyPlan measures how long it takes to see that nothing is to be done.
func (b *bench) emptyPlan(count int) error {
	root, update, index := filepath.Join(b.dir, "root"), filepath.Join(b.dir, "update"), filepath.Join(b.dir, "git")
	const bytesPerFile = 2048
	if err := errors.Join(osRelease(root), makeTree(root, count, int64(count)*bytesPerFile, 1)); err != nil {
		return err
	}
	if _, err := tool("cp", "-a", root, update); err != nil {
		return err
	}
	git := []string{"--git-dir=" + index, "--work-tree=" + root}
	for _, args := range [][]string{
		{"init", "--quiet", "--bare", index},
		append(slices.Clone(git), "-c", "core.bare=false", "add", "--all"),
		append(slices.Clone(git), "-c", "core.bare=false", "-c", "user.name=bench", "-c", "user.email=bench@localhost", "commit", "--quiet", "--message=base"),
		{"--git-dir=" + index, "config", "core.bare", "false"},
	} {
		if _, err := tool("git", args...); err != nil {
			return err
		}
	}
	// liveupd and git both distrust a file that changed in the last moments.
	time.Sleep(3 * time.Second)
	plan := func() (sample, error) {
		s, err := b.timed(b.liveupd, "apply", "--plan", "--root", root, "--source", "tree:"+update, "--allow-unsigned", "--json")
		if err == nil {
			err = nothingToDo(s.out)
		}
		return s, err
	}
	contenders := []struct {
		name string
		run  func() (sample, error)
	}{
		{"liveupd apply --plan", plan},
		{"rsync -an", func() (sample, error) {
			// The root folder's own time differs, because .liveupd was made in it.
			return b.timed("rsync", "-an", "--omit-dir-times", "--itemize-changes", "--exclude=/.liveupd", update+"/", root+"/")
		}},
		{"git status", func() (sample, error) {
			return b.timed("git", append(slices.Clone(git), "status", "--porcelain", "--", "usr", "etc")...)
		}},
	}
	label := fmt.Sprintf("plan with nothing to do, %d files", count)
	if err := b.dropCaches(); err != nil {
		return err
	}
	first, err := plan()
	if err != nil {
		return err
	}
	b.rows = append(b.rows, row{What: label + ", the very first, which reads all", Contender: contenders[0].name, Unit: "ms", Samples: []float64{first.MS}})
	peak := []float64{first.PeakMB}
	for _, cold := range []bool{true, false} {
		times := make([][]float64, len(contenders))
		for i := range b.runs {
			for c := range contenders {
				if cold {
					err = b.dropCaches()
				} else {
					_, err = contenders[c].run()
				}
				if err != nil {
					return err
				}
				s, err := contenders[c].run()
				if err != nil {
					return err
				}
				if c > 0 && len(bytes.TrimSpace(s.out)) > 0 {
					return fmt.Errorf("%s sees a difference: %.200s", contenders[c].name, s.out)
				}
				times[c] = append(times[c], s.MS)
				if c == 0 {
					peak = append(peak, s.PeakMB)
				}
			}
			fmt.Fprintf(os.Stderr, "bench: plan, cold %v, run %d of %d\n", cold, i+1, b.runs)
		}
		state := ", warm"
		if cold {
			state = ", cold"
		}
		own := row{Samples: times[0]}.median()
		for c := range contenders {
			r := row{What: label + state, Contender: contenders[c].name, Unit: "ms", Samples: times[c]}
			if c > 0 {
				r.Ratio = own / r.median()
			}
			b.rows = append(b.rows, r)
		}
	}
	b.rows = append(b.rows, row{What: "peak memory of it", Contender: contenders[0].name, Unit: "MB", Samples: peak})
	return removeAll(root, update, index)
}

// nothingToDo fails unless the plan is empty.
func nothingToDo(out []byte) error {
	for line := range bytes.Lines(out) {
		var p change.Plan
		if json.Unmarshal(line, &p) == nil && p.MessageType == "plan" {
			if !p.Empty() {
				return fmt.Errorf("the plan has something to do: %+v", p.Changes)
			}
			return nil
		}
	}
	return errors.New("liveupd printed no plan")
}

func removeAll(dirs ...string) error {
	var problems []error
	for _, dir := range dirs {
		problems = append(problems, os.RemoveAll(dir))
	}
	return errors.Join(problems...)
}
