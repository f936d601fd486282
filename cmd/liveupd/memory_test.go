package main

import (
	"math"
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

// A limit below what lives would leave no time for anything but collections.
func TestMemoryLimit(t *testing.T) {
	for live := uint64(0); live < 1<<30; live += 1 << 20 {
		if limit := memoryLimit(live); limit < int64(live)*13/10 {
			t.Fatalf("%d MB live: the limit is %d MB", live>>20, limit>>20)
		}
	}
	if memoryLimit(20<<20) > 50<<20 {
		t.Error("a plan of 10,000 paths may take more than 50 MB")
	}
}

// What lives more than the limit raises it, once a collection has told.
func TestMemoryLimitFollows(t *testing.T) {
	defer debug.SetMemoryLimit(math.MaxInt64)
	saveMemory()
	if limit := debug.SetMemoryLimit(-1); limit != lowMemory {
		t.Fatalf("at first the limit is %d", limit)
	}
	live := make([]byte, 100<<20)
	for range 1000 {
		runtime.GC()
		if debug.SetMemoryLimit(-1) > int64(len(live)) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if limit := debug.SetMemoryLimit(-1); limit <= int64(len(live)) {
		t.Errorf("with %d MB alive the limit is %d MB", len(live)>>20, limit>>20)
	}
	runtime.KeepAlive(live)
}
