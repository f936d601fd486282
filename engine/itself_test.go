package engine

import (
	"testing"

	"github.com/liveupd/liveupd/change"
)

func TestRemoves(t *testing.T) {
	for _, tt := range []struct {
		path string
		op   change.Op
		gone bool
	}{
		{"/usr/bin/liveupd", change.Remove, true},
		{"/usr/bin", change.Remove, true},
		{"/usr/bin/liveupd", change.Replace, false},
		{"/usr/bin/live", change.Remove, false},
		{"/usr/bin/liveupd-x", change.Remove, false},
	} {
		d := &change.Delta{Entries: []change.Entry{{Path: tt.path, Op: tt.op}}}
		if got := removes(d, "/usr/bin/liveupd") != ""; got != tt.gone {
			t.Errorf("%v of %s takes it away: %v; want %v", tt.op, tt.path, got, tt.gone)
		}
	}
}
