package transact

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// fillBench makes 5,000 files of 200 MB in 250 folders on both sides.
func fillBench(b *testing.B, r *rig) *change.Delta {
	b.Helper()
	const files, size = 5000, 40000
	rnd := rand.NewChaCha8([32]byte{1})
	buf := make([]byte, size)
	for i := range files {
		name := fmt.Sprintf("usr/lib/d%03d/file%04d", i/20, i)
		for _, root := range []string{r.live, r.src} {
			if _, err := rnd.Read(buf); err != nil {
				b.Fatal(err)
			}
			p := filepath.Join(root, name)
			must(b, os.MkdirAll(filepath.Dir(p), 0o755))
			must(b, os.WriteFile(p, buf, 0o644))
		}
	}
	d := &change.Delta{}
	live, src := r.nodes(r.live), r.nodes(r.src)
	for i := range files {
		p := fmt.Sprintf("/usr/lib/d%03d/file%04d", i/20, i)
		d.Entries = append(d.Entries, change.Entry{Path: p, Op: change.Replace, Old: live[p], New: src[p], Aspects: change.AspectContent, From: p})
		d.Bytes += size
	}
	if out, err := exec.Command("sync", "-f", r.live).CombinedOutput(); err != nil {
		b.Fatalf("sync: %v: %s", err, out)
	}
	return d
}

// BenchmarkCommit5000 replaces 5,000 files of 200 MB: the whole transaction, and
// beside it how long the swap takes. Its peer is BenchmarkCopy5000.
func BenchmarkCommit5000(b *testing.B) {
	var swap, stage, prepare, commit time.Duration
	for b.Loop() {
		b.StopTimer()
		r := newRig(b, b.TempDir())
		d := fillBench(b, r)
		// The comparison before has read both sides' names, not their digests.
		for i := range d.Entries {
			d.Entries[i].New.Digest = change.Digest{}
		}
		s := r.store(nil)
		src, err := sys.OpenRoot(r.src)
		must(b, err)
		b.StartTimer()
		t0 := time.Now()
		tx, err := s.Begin(Header{})
		must(b, err)
		must(b, tx.Stage(context.Background(), d, src, nil))
		t1 := time.Now()
		must(b, tx.Prepare(context.Background(), nil))
		t2 := time.Now()
		took, err := tx.Commit(context.Background())
		must(b, err)
		commit += time.Since(t2)
		stage += t1.Sub(t0)
		prepare += t2.Sub(t1)
		swap += took
		must(b, tx.Verified())
		b.StopTimer()
		src.Close()
		s.Close()
		got, err := os.ReadFile(filepath.Join(r.live, "usr/lib/d000/file0000"))
		must(b, err)
		want, err := os.ReadFile(filepath.Join(r.src, "usr/lib/d000/file0000"))
		must(b, err)
		if !bytes.Equal(got, want) {
			b.Fatal("the live file is not the source's")
		}
		must(b, os.RemoveAll(r.live))
		must(b, os.RemoveAll(r.src))
		b.StartTimer()
	}
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 / float64(b.N) }
	b.ReportMetric(ms(swap), "swap-ms/op")
	b.ReportMetric(ms(stage), "stage-ms/op")
	b.ReportMetric(ms(prepare), "prepare-ms/op")
	b.ReportMetric(ms(commit), "commit-ms/op")
}

// BenchmarkCopy5000 is cp -a of the same files and sync.
func BenchmarkCopy5000(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		r := newRig(b, b.TempDir())
		fillBench(b, r)
		b.StartTimer()
		if out, err := exec.Command("cp", "-a", r.src+"/usr", filepath.Join(r.live, "copy")).CombinedOutput(); err != nil {
			b.Fatalf("cp: %v: %s", err, out)
		}
		if out, err := exec.Command("sync", "-f", r.live).CombinedOutput(); err != nil {
			b.Fatalf("sync: %v: %s", err, out)
		}
		b.StopTimer()
		must(b, os.RemoveAll(r.live))
		must(b, os.RemoveAll(r.src))
		b.StartTimer()
	}
}
