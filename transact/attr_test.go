package transact

import (
	"os/exec"
	"testing"
)

func chattr(t *testing.T, path string, immutable bool) {
	t.Helper()
	flag := "-i"
	if immutable {
		flag = "+i"
	}
	if out, err := exec.Command("chattr", flag, path).CombinedOutput(); err != nil {
		t.Skipf("chattr %s: %v: %s", flag, err, out)
	}
}
