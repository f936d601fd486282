package main

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// Limits of memory that the runtime keeps to by collecting more often, in bytes.
// What lives of a plan fits twice into the first for 10,000 changed paths; it
// must be more than what lives, or the runtime would do nothing but collect.
const (
	lowMemory  = 34 << 20
	highMemory = 80 << 20
	muchLives  = 24 << 20
)

// memoryLimit is the limit for a heap of which so much lives.
func memoryLimit(live uint64) int64 {
	if live <= muchLives {
		return lowMemory
	}
	return max(highMemory, int64(live)/2*3)
}

// saveMemory keeps the heap small without a collection at every doubling: a plan
// over a large root is short-lived and allocates in bursts.
func saveMemory() {
	limit := memoryLimit(0)
	debug.SetMemoryLimit(limit)
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	afterCollections(func() {
		metrics.Read(sample)
		// Each new limit stops all goroutines for a moment.
		if next := memoryLimit(sample[0].Value.Uint64()); next > limit {
			limit = next + next/8
			debug.SetMemoryLimit(limit)
		}
	})
}

// afterCollections calls do after each collection, which alone tells what lives: a run that
// waits a day for its window is not woken by a clock.
func afterCollections(do func()) {
	type mark struct{ _ [64]byte } // small ones share a block, which may live on
	var again func(struct{})
	again = func(struct{}) {
		do()
		runtime.AddCleanup(new(mark), again, struct{}{})
	}
	runtime.AddCleanup(new(mark), again, struct{}{})
}
