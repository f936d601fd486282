package power

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/liveupd/liveupd/tests/machine"
	"github.com/liveupd/liveupd/tests/vm"
)

func long() bool { return os.Getenv("LIVEUPD_LONG") == "1" }

// choose gives the random numbers of a suite, and prints the seed.
func choose(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano()) % 1_000_000
	if s := os.Getenv("LIVEUPD_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("LIVEUPD_SEED: %v", err)
		}
		seed = n
	}
	t.Logf("LIVEUPD_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

func TestExt4(t *testing.T)  { suites(t, ext4) }
func TestXFS(t *testing.T)   { suites(t, xfs) }
func TestBtrfs(t *testing.T) { suites(t, btrfs) }

// An older kernel: each state after a flush, and no more.
func TestOlderKernel(t *testing.T) {
	vm.Require(t)
	if !long() {
		t.Skip("an older kernel: in make test-long only")
	}
	for _, k := range []kind{ext4, xfs, btrfs} {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			replay(t, newRig(t, k, vm.Bookworm, machine.Program(t, "liveupd")))
		})
	}
}

func suites(t *testing.T, k kind) {
	vm.Require(t)
	t.Parallel()
	r := newRig(t, k, vm.Trixie, machine.Program(t, "liveupd"))
	t.Run("replay", func(t *testing.T) { replay(t, r) })
	s := save(t, r)
	t.Run("cuts", func(t *testing.T) { pull(t, s) })
	t.Run("faults", func(t *testing.T) { fail(t, s) })
}
