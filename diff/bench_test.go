package diff

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/liveupd/liveupd/internal/catalog"
)

// bigTree makes files files in folders of ten, four deep, each of 1 KiB.
func bigTree(b *testing.B, dir string, files int) {
	b.Helper()
	content := make([]byte, 1024)
	for i := range files {
		folder := filepath.Join(dir, "usr", fmt.Sprintf("a%02d", i/10000), fmt.Sprintf("b%02d", i/1000%10), fmt.Sprintf("c%02d", i/10%100))
		if i%10 == 0 {
			if err := os.MkdirAll(folder, 0o755); err != nil {
				b.Fatal(err)
			}
		}
		copy(content, fmt.Sprint(i))
		name := filepath.Join(folder, fmt.Sprintf("file-%d.txt", i%10))
		if err := os.WriteFile(name, content, 0o644); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCompareWarm100k is a plan with nothing to do, on 100,000 files that the
// kernel has cached and both indexes know; git status on the same tree beside it.
// Its aim: at most one and a half times git's time, and less than 100 MB.
func BenchmarkCompareWarm100k(b *testing.B) {
	src, live := b.TempDir(), b.TempDir()
	bigTree(b, src, 100_000)
	if out, err := exec.Command("cp", "-a", filepath.Join(src, "usr"), live).CombinedOutput(); err != nil {
		b.Fatalf("cp: %v\n%s", err, out)
	}
	time.Sleep(2100 * time.Millisecond) // younger files are racy, for git as for us
	cache := openDir(b, b.TempDir())
	bed := newBed(b, src, live, whole())
	bed.source.whole, bed.o.Workers = true, 0
	run := func(b *testing.B) *Result {
		b.Helper()
		bed.o.Index, bed.o.SourceIndex = catalog.LoadIndex(cache, "live"), catalog.LoadIndex(cache, "source")
		r, err := Compare(context.Background(), bed.source, bed.own, bed.o)
		if err != nil {
			b.Fatal(err)
		}
		if !r.Delta.Empty() || r.Delta.Identical < 100_000 {
			b.Fatalf("Compare = %q, %d identical", brief(r.Delta), r.Delta.Identical)
		}
		for name, x := range map[string]*catalog.Index{"live": bed.o.Index, "source": bed.o.SourceIndex} {
			if err := x.Save(nil, cache, name); err != nil {
				b.Fatal(err)
			}
		}
		return r
	}
	var r *Result
	b.Run("cold index", func(b *testing.B) {
		forgetPeak(b)
		for range b.N {
			for _, name := range []string{"live", "source"} {
				if err := os.Remove(filepath.Join(cache.Name(), name)); err != nil && !os.IsNotExist(err) {
					b.Fatal(err)
				}
			}
			r = run(b)
		}
		reportPeak(b)
	})
	b.Run("warm", func(b *testing.B) {
		b.ReportAllocs()
		forgetPeak(b)
		for b.Loop() {
			r = run(b)
		}
		reportPeak(b)
	})
	b.Run("base entries", func(b *testing.B) {
		for range b.N {
			if err := catalog.WriteBase(nil, cache, "base", false, r.BaseEntries(nil)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("git status", func(b *testing.B) {
		git := func(args ...string) {
			b.Helper()
			cmd := exec.Command("git", append([]string{"-C", live, "-c", "user.name=x", "-c", "user.email=x@x", "-c", "gc.auto=0"}, args...)...)
			if out, err := cmd.CombinedOutput(); err != nil {
				b.Skipf("git %v: %v\n%s", args, err, out)
			}
		}
		if _, err := os.Stat(filepath.Join(live, ".git")); err != nil {
			git("init", "-q")
			git("add", "-A")
			git("commit", "-qm", "x")
			git("status", "--porcelain")
		}
		for b.Loop() {
			git("status", "--porcelain")
		}
	})
}

// forgetPeak makes the process's present size its peak: proc(5), clear_refs.
func forgetPeak(b *testing.B) {
	b.Helper()
	debug.FreeOSMemory()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		b.Logf("the peak is that of the whole process: %v", err)
	}
}

func reportPeak(b *testing.B) {
	b.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	var kib float64
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(kib/1024, "MiB-peak")
}
