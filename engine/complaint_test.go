package engine

import (
	"strings"
	"testing"
)

func TestComplaint(t *testing.T) {
	for _, tt := range []struct{ name, out, want string }{
		{"nothing", "Reading package lists...\n", ""},
		{"the first one", "Err:1 http://x\n  E: Failed to fetch http://x/y.deb  Network is unreachable\nE: Some files failed to download\n", " (Failed to fetch http://x/y.deb  Network is unreachable)"},
		{"dpkg's", "dpkg: error processing package a (--configure):\n installed a script that failed\nE: Sub-process returned an error code (1)\n", " (dpkg: error processing package a (--configure))"},
		{"a long one", "E: " + strings.Repeat("x", 999), " (" + strings.Repeat("x", 300) + "...)"},
	} {
		if got := complaint([]byte(tt.out)); got != tt.want {
			t.Errorf("%s: %q; want %q", tt.name, got, tt.want)
		}
	}
}
