package transact

import (
	"errors"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// A quota that is used up at any moment of an update leaves the old tree or the new
// one, now and after a recovery with the quota still in force, and is named. Of the
// file systems here btrfs alone holds root to one; the others are tried in the
// virtual machine of tests/layouts.
func TestQuotaAtEachMoment(t *testing.T) {
	r, f, old, want := fullDisk(t, "btrfs")
	t.Run("run", func(t *testing.T) {
		disk := filepath.Dir(r.live)
		tool(t, "btrfs", "quota", "enable", disk)
		tool(t, "btrfs", "quota", "rescan", "-w", disk)
		used := func(t *testing.T) func() {
			return func() {
				r.t, f.t = t, t
				tool(t, "btrfs", "filesystem", "sync", disk)
				limitQgroup(t, disk, 1<<20)
				f.blocks()
			}
		}
		clean := func(t *testing.T) {
			t.Helper()
			r.t = t
			f.empty() // first: the quota's own tree is counted, too
			tool(t, "btrfs", "filesystem", "sync", disk)
			tool(t, "btrfs", "qgroup", "limit", "none", disk)
			_, err := r.recoverNow(nil)
			must(t, err)
			if which(old, want, snapshot(t, r.live)) == "new" {
				must(t, r.revertLast(nil))
			}
			must(t, r.collect(nil))
			sameTree(t, "in the end", old, snapshot(t, r.live))
		}
		ended := map[string]int{}
		for _, m := range moments {
			t.Run(m.name, func(t *testing.T) {
				r.t = t
				err := r.run(fillAt(m.when, used(t), false), r.compare())
				v := verdict(old, want, snapshot(t, r.live))
				ended[v]++
				if v != "old" && v != "new" {
					t.Errorf("error %v, and the tree is %s", err, v)
				}
				if (err == nil) != (v == "new") {
					t.Errorf("error %v, and the tree is %s", err, v)
				}
				if err != nil && (!errors.Is(err, syscall.EDQUOT) || !strings.Contains(err.Error(), "quota") || !strings.Contains(err.Error(), "/ (btrfs")) {
					t.Errorf("error %v; want one that names the quota and the file system", err)
				}
				_, rerr := r.recoverNow(nil)
				t.Logf("the tree is %s, error %v; the recovery: %v", v, err, rerr)
				if v := verdict(old, want, snapshot(t, r.live)); rerr != nil || v != "old" && v != "new" {
					t.Errorf("recovery under the quota: %v, the tree is %s", rerr, v)
				}
				if v == "new" {
					if err := r.revertLast(nil); err != nil {
						t.Errorf("rollback under the quota: %v", err)
					}
					if v := verdict(old, want, snapshot(t, r.live)); v != "old" {
						t.Errorf("rollback under the quota left %s", v)
					}
				}
				clean(t)
			})
		}
		t.Logf("%d moments ended with %v", len(moments), ended)

		// The negative control.
		stopped := 0
		for _, m := range moments {
			if m.committed && r.run(fillAt(m.when, used(t), true), r.compare()) != nil {
				stopped++
			}
			clean(t)
		}
		if stopped == 0 {
			t.Error("under a quota the commit needs no ballast")
		}
	})
}

// limitQgroup lets a subvolume have no more than it holds and so many bytes.
func limitQgroup(t *testing.T, disk string, more int64) {
	t.Helper()
	out, err := exec.Command("btrfs", "qgroup", "show", "--raw", disk).Output()
	must(t, err)
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "0/5" {
			held, err := strconv.ParseInt(f[1], 10, 64)
			must(t, err)
			tool(t, "btrfs", "qgroup", "limit", strconv.FormatInt(held+more, 10), disk)
			return
		}
	}
	t.Fatalf("no qgroup of the top level:\n%s", out)
}
