package main

import (
	"runtime/debug"
	"runtime/metrics"
	"time"
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
	go func() {
		sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		for range time.Tick(100 * time.Millisecond) {
			metrics.Read(sample)
			// Each new limit stops all goroutines for a moment.
			if next := memoryLimit(sample[0].Value.Uint64()); next > limit {
				limit = next + next/8
				debug.SetMemoryLimit(limit)
			}
		}
	}()
}
