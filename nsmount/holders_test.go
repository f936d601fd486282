package nsmount

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const someMaps = `55d0-55d1 r--p 00000000 fe:00 1234                               /usr/bin/app
7f00-7f01 rw-s 00000000 fe:00 1235                               /var/lib/with two  spaces
7f01-7f02 r--s 00000000 fe:00 1236                               /usr/lib/gconv.cache
7f02-7f03 r-xp 00000000 fe:00 1237                               /usr/lib/old.so (deleted)
7f03-7f04 rw-s 00000000 fe:01 1238                               /other/fs
7f04-7f05 rw-s 00000000 00:01 1239                               /dev/zero (deleted)
7f05-7f06 rw-p 00000000 00:00 0                                  [heap]
7f06-7f07 rw-p 00000000 00:00 0 
`

func TestMappings(t *testing.T) {
	s := scan{major: 0xfe, minor: 0}
	want := []string{"/var/lib/with two  spaces", "/usr/lib/old.so (deleted)"}
	if diff := cmp.Diff(want, s.mappings(strings.NewReader(someMaps))); diff != "" {
		t.Errorf("mappings (-want +got):\n%s", diff)
	}
}

func FuzzMappings(f *testing.F) {
	f.Add(someMaps)
	f.Add("a rw-s 0 fe:00 1 \n\n  \n")
	f.Fuzz(func(t *testing.T, in string) {
		s := scan{major: 0xfe, minor: 0}
		if got := s.mappings(strings.NewReader(in)); len(got) > strings.Count(in, "\n")+1 {
			t.Errorf("%d mappings from %q", len(got), in)
		}
	})
}

func TestParseFDInfo(t *testing.T) {
	tests := []struct {
		in    string
		flags uint64
		mount int
	}{
		{"pos:\t0\nflags:\t0100002\nmnt_id:\t27\nino:\t5\n", 0o100002, 27},
		{"pos:\t0\nflags:\t02\n", 2, -1},
		{"mnt_id: x", 0, -1},
		{"", 0, -1},
	}
	for _, tt := range tests {
		if flags, mount := parseFDInfo([]byte(tt.in)); flags != tt.flags || mount != tt.mount {
			t.Errorf("parseFDInfo(%q) = %o, %d; want %o, %d", tt.in, flags, mount, tt.flags, tt.mount)
		}
	}
}
