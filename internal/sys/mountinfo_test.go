package sys

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestParseMountinfo(t *testing.T) {
	tests := []struct {
		name string
		line string
		want Mount
	}{
		{
			"plain", "36 35 98:0 /mnt1 /mnt2 rw,noatime - ext3 /dev/root rw,errors=continue",
			Mount{ID: 36, Parent: 35, Major: 98, Dev: unix.Mkdev(98, 0), Root: "/mnt1", Point: "/mnt2", Options: "rw,noatime", FSType: "ext3", Source: "/dev/root", SuperOptions: "rw,errors=continue"},
		},
		{
			"propagation", "25 1 259:2 / / ro,relatime shared:1 master:7 propagate_from:2 unbindable - ext4 /dev/nvme0n1p2 rw",
			Mount{ID: 25, Parent: 1, Major: 259, Minor: 2, Dev: unix.Mkdev(259, 2), Root: "/", Point: "/", Options: "ro,relatime", Shared: 1, Master: 7, FSType: "ext4", Source: "/dev/nvme0n1p2", SuperOptions: "rw"},
		},
		{
			"escapes", `40 25 0:33 / /a\040b\011c\012d\134e` + "\xff" + ` rw - fuse.x\040y so\040urce rw`,
			Mount{ID: 40, Parent: 25, Minor: 33, Dev: unix.Mkdev(0, 33), Root: "/", Point: "/a b\tc\nd\\e\xff", Options: "rw", FSType: "fuse.x y", Source: "so urce", SuperOptions: "rw"},
		},
		{
			"empty source", "40 25 0:33 / /x rw -  rw rw",
			Mount{ID: 40, Parent: 25, Minor: 33, Dev: unix.Mkdev(0, 33), Root: "/", Point: "/x", Options: "rw", FSType: "", Source: "rw", SuperOptions: "rw"},
		},
		{
			"a mount point named by a hyphen", "40 25 0:33 / - rw - tmpfs  rw",
			Mount{ID: 40, Parent: 25, Minor: 33, Dev: unix.Mkdev(0, 33), Root: "/", Point: "-", Options: "rw", FSType: "tmpfs", SuperOptions: "rw"},
		},
		{
			"a long list of lowers", "40 25 0:33 / /m rw - overlay overlay rw,lowerdir=" + strings.Repeat("/l:", 100000),
			Mount{ID: 40, Parent: 25, Minor: 33, Dev: unix.Mkdev(0, 33), Root: "/", Point: "/m", Options: "rw", FSType: "overlay", Source: "overlay", SuperOptions: "rw,lowerdir=" + strings.Repeat("/l:", 100000)},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, end := range []string{"", "\n"} {
				got, err := ParseMountinfo(strings.NewReader(tt.line + end))
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff([]Mount{tt.want}, got); diff != "" {
					t.Errorf("ParseMountinfo (-want +got):\n%s", diff)
				}
			}
		})
	}
}

func TestParseMountinfoRefuses(t *testing.T) {
	for _, line := range []string{
		"36 35 98:0 /mnt1 /mnt2 rw,noatime", "x 35 98:0 / / rw - ext4 s rw", "36 y 98:0 / / rw - ext4 s rw",
		"36 35 98 / / rw - ext4 s rw", "36 35 a:0 / / rw - ext4 s rw", "36 35 98:0 / / rw shared:x - ext4 s rw", "36 35 98:0 / / rw - ext4 s",
	} {
		if got, err := ParseMountinfo(strings.NewReader("1 1 0:1 / / rw - tmpfs t rw\n" + line + "\n")); err == nil || !strings.Contains(err.Error(), "line 2") {
			t.Errorf("ParseMountinfo(%q) = %v, %v; want an error that names line 2", line, got, err)
		}
	}
}

func TestMountFlags(t *testing.T) {
	m := Mount{Options: "rw,errors=ro,x", SuperOptions: "ro", Point: "/usr/lib"}
	if m.ReadOnly() || !m.SuperReadOnly() {
		t.Errorf("ReadOnly, SuperReadOnly = %v, %v; want false, true", m.ReadOnly(), m.SuperReadOnly())
	}
	for dir, want := range map[string]bool{"/": true, "/usr": true, "/usr/lib": true, "/usr/li": false, "/us": false, "/usr/lib/x": false} {
		if got := m.Inside(dir); got != want {
			t.Errorf("Inside(%q) = %v; want %v", dir, got, want)
		}
	}
}

func TestReadMountinfo(t *testing.T) {
	mounts, err := ReadMountinfo("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		if m.Point == "/" {
			return
		}
	}
	t.Errorf("ReadMountinfo found no / among %d mounts", len(mounts))
}

func FuzzParseMountinfo(f *testing.F) {
	f.Add("36 35 98:0 /mnt1 /mnt2 rw,noatime shared:1 - ext3 /dev/root rw,errors=continue\n")
	f.Add(`40 25 0:33 / /a\040b\777\0 rw - x  rw`)
	f.Fuzz(func(t *testing.T, in string) {
		mounts, err := ParseMountinfo(strings.NewReader(in))
		if err != nil {
			return
		}
		lines := 0
		for line := range strings.SplitSeq(in, "\n") {
			if line != "" {
				lines++
			}
		}
		if len(mounts) != lines {
			t.Errorf("%d mounts from %d lines", len(mounts), lines)
		}
	})
}
