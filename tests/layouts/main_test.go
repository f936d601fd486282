// Package layouts applies, cuts off, recovers and rolls back an update on each
// layout of file systems that servers have.
package layouts

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/liveupd/liveupd/engine"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/nsmount"
)

// The test binary is also the process that is killed.
func TestMain(m *testing.M) {
	if nsmount.ChildMain() {
		return
	}
	if os.Getenv("LAYOUTS_DROP") != "" {
		runtime.LockOSThread() // the bounding set is a thread's own until it executes
		fmt.Fprintln(os.Stderr, dropResource())
		os.Exit(1)
	}
	if len(os.Args) == 6 && os.Args[1] == "die" {
		if err := die(os.Args[2], os.Args[3], os.Args[4], os.Args[5]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// die carries out verb on root and kills itself with SIGKILL before the nth
// rename that follows the commit point; with 0 it ends, and prints how many
// there were; below 0 it dies at the commit point, before it.
func die(verb, root, source, nth string) error {
	at, err := strconv.Atoi(nth)
	if err != nil {
		return err
	}
	var renames atomic.Int64
	var committing atomic.Bool
	k := sys.WithHook(func(c sys.Call) sys.Fault {
		if c.Name != "renameat2" {
			return sys.Fault{}
		}
		state := c.To == "state"
		if committing.Load() && !state && c.To != "steps" {
			if n := renames.Add(1); int(n) == at {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
		}
		// The state is written beside and renamed: staging first, then committing.
		if state {
			states++
			if at < 0 && states == 2 {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
			committing.Store(states == 2)
		}
		return sys.Fault{}
	})
	_, err = (&engine.Engine{Kernel: k}).Run(context.Background(), engine.Request{
		Verb: verb, Root: root, Source: "tree:" + source, AllowUnsigned: true, Snapshot: os.Getenv("LAYOUTS_SNAPSHOT") != "",
	}, engine.Events{})
	fmt.Println(renames.Load())
	return err
}

// states counts how often the state was written; the renames of one transaction
// come one after the other.
var states int

// long tells whether the suite is to try all that it can.
func long() bool { return os.Getenv("LIVEUPD_LONG") != "" }

func need(t *testing.T, programs ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	if testing.Short() {
		t.Skip("mounts file systems: not in the fast loop")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("no loop devices: ", err)
	}
	for _, p := range programs {
		if _, err := look(p); err != nil {
			t.Skip(err)
		}
	}
}

func trim(s string) string { return strings.TrimSpace(s) }
