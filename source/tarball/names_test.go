package tarball

import (
	"os"
	"testing"
)

// hostIDs resolves names as tar does here.
func hostIDs(t testing.TB) func(bool, string) (uint32, error) {
	t.Helper()
	passwd, err := os.ReadFile("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	group, err := os.ReadFile("/etc/group")
	if err != nil {
		t.Fatal(err)
	}
	return IDsFrom(passwd, group)
}

func TestIDsFrom(t *testing.T) {
	id := IDsFrom([]byte("root:x:0:0:root:/root:/bin/sh\n+nis\nann:x:1000:1000::/:/bin/sh\nann:x:7:7::/:\nbad:x:-1:\nbig:x:4294967295:\n"), []byte("adm:x:4:\nempty"))
	for _, c := range []struct {
		group bool
		name  string
		want  uint32
		ok    bool
	}{
		{false, "root", 0, true},
		{false, "ann", 1000, true},
		{false, "bad", 0, false},
		{false, "big", 0, false},
		{false, "adm", 0, false},
		{true, "adm", 4, true},
		{true, "empty", 0, false},
	} {
		got, err := id(c.group, c.name)
		if got != c.want || (err == nil) != c.ok {
			t.Errorf("id(%v, %q) = %d, %v; want %d, %v", c.group, c.name, got, err, c.want, c.ok)
		}
	}
}
