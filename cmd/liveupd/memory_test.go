package main

import "testing"

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
