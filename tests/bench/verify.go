package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"github.com/liveupd/liveupd/change"
)

// verify measures how long it takes to see that a root is what was laid down: by the
// index alone, and reading each file, which sha256sum has to do, too. The memory is
// that of all files and of a tenth of them.
func (b *bench) verify(count int) error {
	const bytesPerFile = 8192
	var peaks []row
	for _, n := range []int{count / 10, count} {
		peak, err := b.verifyOf(n, bytesPerFile, n == count)
		if err != nil {
			return err
		}
		peaks = append(peaks, row{What: fmt.Sprintf("peak memory of it, %d files", n), Contender: "liveupd verify --full", Unit: "MB", Samples: peak})
	}
	b.rows = append(b.rows, peaks...)
	return nil
}

// verifyOf measures one root; timed tells whether its times are wanted, or only the memory.
func (b *bench) verifyOf(count int, bytesPerFile int64, timed bool) (peak []float64, err error) {
	root, update := filepath.Join(b.dir, "root"), filepath.Join(b.dir, "update")
	if err := errors.Join(osRelease(update), makeTree(update, count, int64(count)*bytesPerFile, 1), os.Mkdir(root, 0o755)); err != nil {
		return nil, err
	}
	if _, err := b.timed(b.liveupd, "apply", "--root", root, "--source", "tree:"+update, "--allow-unsigned", "--yes", "--json"); err != nil {
		return nil, err
	}
	// What changed in the last moments is not remembered by the index.
	time.Sleep(3 * time.Second)
	own := func(args ...string) func() (sample, error) {
		return func() (sample, error) {
			s, err := b.timed(b.liveupd, append([]string{"verify", "--root", root, "--json"}, args...)...)
			if err == nil {
				err = allChecked(s.out, count)
			}
			return s, err
		}
	}
	sums := `find "$1/usr" "$1/etc" -type f -print0 | xargs -0 -P "$2" -n 500 sha256sum >/dev/null`
	contenders := []struct {
		name string
		run  func() (sample, error)
	}{
		{"liveupd verify --full", own("--full")},
		{"sha256sum, " + strconv.Itoa(runtime.NumCPU()) + " at once", func() (sample, error) {
			return b.timed("sh", "-euc", sums, "sh", root, strconv.Itoa(runtime.NumCPU()))
		}},
		{"liveupd verify", own()},
	}
	if _, err := own()(); err != nil { // the index
		return nil, err
	}
	if !timed {
		s, err := contenders[0].run()
		return []float64{s.PeakMB}, errors.Join(err, removeAll(root, update))
	}
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
					return nil, err
				}
				s, err := contenders[c].run()
				if err != nil {
					return nil, err
				}
				times[c] = append(times[c], s.MS)
				if c == 0 {
					peak = append(peak, s.PeakMB)
				}
			}
			fmt.Fprintf(os.Stderr, "bench: verify, cold %v, run %d of %d\n", cold, i+1, b.runs)
		}
		state := ", warm"
		if cold {
			state = ", cold"
		}
		label := fmt.Sprintf("verify of %d files, %d MB", count, int64(count)*bytesPerFile>>20) + state
		full := row{Samples: times[0]}.median()
		for c := range contenders {
			r := row{What: label, Contender: contenders[c].name, Unit: "ms", Samples: times[c]}
			if c > 0 {
				r.Ratio = full / r.median()
			}
			b.rows = append(b.rows, r)
		}
		b.rows[len(b.rows)-1].Ratio = 0 // it is liveupd itself
	}
	return peak, removeAll(root, update)
}

// allChecked fails unless verify has looked at every file and found no damage.
func allChecked(out []byte, count int) error {
	for line := range bytes.Lines(out) {
		var r change.VerifyReport
		if json.Unmarshal(line, &r) != nil || r.MessageType != "report" {
			continue
		}
		if r.Checked < count || r.Damaged > 0 {
			return fmt.Errorf("verify looked at %d paths of %d and found %d damaged", r.Checked, count, r.Damaged)
		}
		return nil
	}
	return errors.New("liveupd printed no report")
}
