package night

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// Ten nights, of which every third fails: what they keep does not grow.
func tenNights(r *rig) {
	r.configure(`canary = ["` + r.script("ten", `case $(cat /run/alpha.version) in 50[369]) exit 1;; esac`) + `"]`)
	used := func(dir string) (kB int64) {
		r.t.Helper()
		if _, err := fmt.Sscan(r.Shell("du -sk --apparent-size "+dir+" | cut -f1"), &kB); err != nil {
			r.t.Fatal(err)
		}
		return kB
	}
	var first, firstState int64
	for night := range 10 {
		version := fmt.Sprint(500 + night)
		r.clockOn(night, "03:00:00")
		r.publish(app{name: "alpha", version: version, text: strings.Repeat(version, 100000)})
		want := change.NightDone
		if night%3 == 0 && night > 0 {
			want = change.NightRolledBack
		}
		n := r.want(r.night(), want)
		kept, state := used("/.liveupd"), used("/var/lib/liveupd")
		r.t.Logf("night %d: %s; .liveupd has %d kB, /var/lib/liveupd %d kB", night, n.Result, kept, state)
		if night == 3 {
			first, firstState = kept, state
		}
		if night > 3 && (kept > first*5/4+100 || state > firstState*5/4+16) {
			r.t.Errorf("night %d: what is kept has grown from %d and %d kB to %d and %d", night, first, firstState, kept, state)
		}
	}
	r.Shell("rm /etc/localtime")
	for _, dir := range []string{"/run/liveupd", "/var/lib/liveupd"} {
		files, err := filepath.Glob(r.Path(dir + "/*"))
		if err != nil || len(files) > 12 {
			r.t.Errorf("%s holds %d files: %q", dir, len(files), files)
		}
	}
}
