package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
)

// barriers measures what durability costs: the same apply by the same program with
// and without its barriers, on an idle file system and beside a program that writes
// all the while. Without them a crash leaves a mixture.
func (b *bench) barriers(count int, size int64) error {
	base, update, root := filepath.Join(b.dir, "base"), filepath.Join(b.dir, "update"), filepath.Join(b.dir, "root")
	if err := errors.Join(osRelease(base), makeTree(base, count, size, 1), makeTree(update, count, size, 2)); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for _, busy := range []bool{false, true} {
		ways := []string{"with", "without"}
		times := make([][]float64, len(ways))
		for i := range b.runs {
			for w, way := range ways {
				if err := b.freshRoot(base, root, update); err != nil {
					return err
				}
				stop := func() (int64, error) { return 0, nil }
				if busy {
					if stop, err = b.busyWriter(); err != nil {
						return err
					}
				}
				s, err := b.timed(self, insideVerb, way, root, update)
				written, werr := stop()
				if err = errors.Join(err, werr); err != nil {
					return err
				}
				if busy && written == 0 {
					return errors.New("the busy writer wrote nothing")
				}
				if err := sameFiles(update, root); err != nil {
					return err
				}
				times[w] = append(times[w], s.MS)
			}
			fmt.Fprintf(os.Stderr, "bench: barriers, beside a writer %v, run %d of %d\n", busy, i+1, b.runs)
		}
		label := fmt.Sprintf("apply of %d files, %d MB, idle", count, size>>20)
		if busy {
			label = strings.Replace(label, "idle", "beside a busy writer", 1)
		}
		own := row{Samples: times[0]}.median()
		b.rows = append(b.rows, row{What: label, Contender: "with barriers", Unit: "ms", Samples: times[0]})
		without := row{What: label, Contender: "without barriers (unsafe)", Unit: "ms", Samples: times[1]}
		without.Ratio = own / without.median()
		b.rows = append(b.rows, without)
	}
	return removeAll(base, update, root)
}

// busyWriter rewrites files of 1 MB on the same file system, each with fsync, until
// it is told to stop. It gives how many it wrote.
func (b *bench) busyWriter() (stop func() (int64, error), err error) {
	dir, err := os.MkdirTemp(b.dir, "busy-")
	if err != nil {
		return nil, err
	}
	var count atomic.Int64
	quit, done := make(chan struct{}), make(chan error, 1)
	go func() {
		content := make([]byte, 1<<20)
		random := rand.NewChaCha8([32]byte{7})
		for i := 0; ; i++ {
			select {
			case <-quit:
				done <- nil
				return
			default:
			}
			_, _ = random.Read(content) // never fails, by its documentation
			f, err := os.Create(filepath.Join(dir, fmt.Sprint(i%16)))
			if err == nil {
				_, err = f.Write(content)
				err = errors.Join(err, f.Sync(), f.Close())
			}
			if err != nil {
				done <- err
				return
			}
			count.Add(1)
		}
	}()
	return func() (int64, error) {
		close(quit)
		err := <-done
		return count.Load(), errors.Join(err, os.RemoveAll(dir))
	}, nil
}

// recovery measures what a boot waits for after a crash in the middle of the swap, by
// the number of files, with cold caches as after a boot. Beside it stands `sha256sum`
// of the update's files: recovery hashes each of them before it trusts it.
func (b *bench) recovery(counts []int, bytesPerFile int64) error {
	base, update, root := filepath.Join(b.dir, "base"), filepath.Join(b.dir, "update"), filepath.Join(b.dir, "root")
	self, err := os.Executable()
	if err != nil {
		return err
	}
	recoverer := filepath.Join(filepath.Dir(b.liveupd), "liveupd-recover")
	for _, count := range counts {
		size := int64(count) * bytesPerFile
		if err := errors.Join(osRelease(base), makeTree(base, count, size, 1), makeTree(update, count, size, 2)); err != nil {
			return err
		}
		var times, sums, peak []float64
		for i := range b.runs {
			if err := b.freshRoot(base, root, update); err != nil {
				return err
			}
			_, err := b.timed(self, insideVerb, fmt.Sprint(count/2), root, update)
			if err == nil {
				return errors.New("the apply that was to be killed ended")
			}
			if !strings.Contains(err.Error(), "signal: killed") && !strings.Contains(err.Error(), "exit status") {
				return err
			}
			if err := sameFiles(update, root); err == nil {
				return errors.New("the apply was killed after its end")
			}
			if err := b.dropCaches(); err != nil {
				return err
			}
			s, err := b.timed(recoverer, "--root", root)
			if err != nil {
				return err
			}
			if err := sameFiles(update, root); err != nil {
				return fmt.Errorf("the recovery did not do its work: %w", err)
			}
			if err := b.dropCaches(); err != nil {
				return err
			}
			sum, err := b.timed("sh", "-euc", `find "$1" -type f -print0 | xargs -0 sha256sum >/dev/null`, "sh", update)
			if err != nil {
				return err
			}
			times, sums, peak = append(times, s.MS), append(sums, sum.MS), append(peak, s.PeakMB)
			fmt.Fprintf(os.Stderr, "bench: recovery of %d files, run %d of %d\n", count, i+1, b.runs)
		}
		label := fmt.Sprintf("recovery from half a swap, %d files, %d MB, cold", count, size>>20)
		peers := row{What: label, Contender: "sha256sum of the new files", Unit: "ms", Samples: sums}
		own := row{What: label, Contender: "liveupd-recover", Unit: "ms", Samples: times}
		peers.Ratio = own.median() / peers.median()
		b.rows = append(b.rows, own, peers, row{What: "peak memory of it", Contender: "liveupd-recover", Unit: "MB", Samples: peak})
		if err := removeAll(base, update, root); err != nil {
			return err
		}
	}
	return nil
}
