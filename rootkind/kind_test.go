package rootkind

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// host makes a fake /sys and /run, and a root.
type host struct {
	t             *testing.T
	sys, run, top string
}

func newHost(t *testing.T) *host {
	dir := t.TempDir()
	h := &host{t, filepath.Join(dir, "sys"), filepath.Join(dir, "run"), filepath.Join(dir, "root")}
	for _, d := range []string{h.sys, h.run, h.top} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

func (h *host) file(dir, name, content string) {
	h.t.Helper()
	name = filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) dir(dir, name string) {
	h.t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) link(target, dir, name string) {
	h.t.Helper()
	h.dir(dir, filepath.Dir(name))
	if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) kind(m sys.Mount, live, root bool) string {
	h.t.Helper()
	fd, err := sys.OpenRoot(h.top)
	if err != nil {
		h.t.Fatal(err)
	}
	defer fd.Close()
	where := Host{Sys: h.sys, Root: root}
	if live {
		where.Run = h.run
	}
	e, err := Look(fd, &m, where)
	if err != nil {
		h.t.Fatal(err)
	}
	k := e.Kind()
	if k == nil {
		return ""
	}
	err = k.Error("/usr")
	hint, ok := errors.AsType[*change.HintError](err)
	if !ok || hint.Hint == "" || !strings.Contains(err.Error(), "/usr in place") {
		h.t.Errorf("%s: error %v without its place or a way out", k.Name, err)
	}
	return k.Name
}

func TestKinds(t *testing.T) {
	ext4 := sys.Mount{FSType: "ext4", Major: 8, Minor: 1}
	dm := sys.Mount{FSType: "ext4", Major: 254, Minor: 3}
	const block = "dev/block/254:3/"
	for name, tt := range map[string]struct {
		make func(h *host)
		m    sys.Mount
		live bool
		sub  bool // the file system is not the root's own
		want string
	}{
		"an ordinary root":    {m: ext4, live: true},
		"an ordinary tree":    {m: ext4},
		"tmpfs":               {m: sys.Mount{FSType: "tmpfs", Minor: 30}},
		"squashfs":            {m: sys.Mount{FSType: "squashfs", Major: 7}, want: "squashfs"},
		"erofs":               {m: sys.Mount{FSType: "erofs", Major: 7}, want: "erofs"},
		"a program's":         {m: sys.Mount{FSType: "fuse.sshfs", Minor: 40}, want: "fuse"},
		"ntfs-3g":             {m: sys.Mount{FSType: "fuseblk", Major: 8, Minor: 1}, want: "fuse"},
		"virtiofs":            {m: sys.Mount{FSType: "virtiofs", Minor: 40}},
		"nfs, which is tried": {m: sys.Mount{FSType: "nfs4", Minor: 40}},
		"a DVD":               {m: sys.Mount{FSType: "iso9660", Major: 11}, want: "medium"},
		"a container":         {m: sys.Mount{FSType: "overlay", SuperOptions: "rw,lowerdir=/l,upperdir=/u,workdir=/w"}},
		"layers alone":        {m: sys.Mount{FSType: "overlay", SuperOptions: "ro,lowerdir=/l::/d,redirect_dir=on"}, want: "composefs"},
		"a volatile upper":    {m: sys.Mount{FSType: "overlay", SuperOptions: "rw,lowerdir=/l,upperdir=/u,workdir=/w,volatile"}, want: "volatile"},
		"a volatile upper, as newer kernels say it": {m: sys.Mount{FSType: "overlay", SuperOptions: "rw,lowerdir=/l,upperdir=/u,workdir=/w,uuid=on,fsync=volatile"}, want: "volatile"},
		"not upperdir":      {m: sys.Mount{FSType: "overlay", SuperOptions: "ro,lowerdir=/upperdir=x"}, want: "composefs"},
		"a protected card":  {func(h *host) { h.file(h.sys, "dev/block/8:1/ro", "1\n") }, ext4, true, false, "read-only device"},
		"a writable device": {func(h *host) { h.file(h.sys, "dev/block/8:1/ro", "0\n") }, ext4, true, false, ""},
		"dm-verity": {func(h *host) {
			h.file(h.sys, block+"ro", "1\n")
			h.file(h.sys, block+"dm/uuid", "CRYPT-VERITY-0123-root\n")
		}, dm, true, false, "dm-verity"},
		"dm-verity that says it is writable": {func(h *host) { h.file(h.sys, block+"dm/uuid", "CRYPT-VERITY-0123-root\n") }, dm, true, false, "dm-verity"},
		"dm-verity below LVM": {func(h *host) {
			h.file(h.sys, block+"dm/uuid", "LVM-abc\n")
			h.file(h.sys, block+"slaves/dm-0/dm/uuid", "CRYPT-VERITY-0123-pv\n")
		}, dm, true, false, "dm-verity"},
		"dm-verity of /usr alone": {func(h *host) { h.file(h.sys, block+"dm/uuid", "CRYPT-VERITY-0123-usr\n") }, dm, true, true, "dm-verity"},
		"LUKS and LVM": {func(h *host) {
			h.file(h.sys, block+"dm/uuid", "LVM-abc\n")
			h.file(h.sys, block+"slaves/dm-0/dm/uuid", "CRYPT-LUKS2-0123-disk\n")
			h.file(h.sys, block+"slaves/dm-0/slaves/vda2/size", "1\n")
		}, dm, true, false, ""},
		"ostree booted":                  {func(h *host) { h.file(h.run, "ostree-booted", "") }, ext4, true, false, "ostree"},
		"ostree booted, of a subvolume":  {func(h *host) { h.file(h.run, "ostree-booted", "") }, ext4, true, true, ""},
		"another's ostree-booted":        {func(h *host) { h.file(h.run, "ostree-booted", "") }, ext4, false, false, ""},
		"a deployment":                   {func(h *host) { h.link("sysroot/ostree", h.top, "ostree") }, ext4, false, false, "ostree"},
		"an image's link in a container": {func(h *host) { h.link("sysroot/ostree", h.top, "ostree") }, ext4, true, false, ""},
		"a physical root of ostree":      {func(h *host) { h.dir(h.top, "ostree/deploy/os"); h.dir(h.top, "ostree/repo") }, ext4, false, false, "ostree"},
		"a server of repositories":       {func(h *host) { h.dir(h.top, "ostree/repo") }, ext4, false, false, ""},
		"NixOS":                          {func(h *host) { h.dir(h.top, "nix/store"); h.file(h.top, "etc/NIXOS", "") }, ext4, false, false, "nixos"},
		"NixOS, running":                 {func(h *host) { h.dir(h.top, "nix/store"); h.link("/nix/store/x", h.run, "current-system") }, ext4, true, false, "nixos"},
		"nix as a package manager":       {func(h *host) { h.dir(h.top, "nix/store") }, ext4, true, false, ""},
		"Guix":                           {func(h *host) { h.dir(h.top, "gnu/store"); h.link("system-1-link", h.top, "var/guix/profiles/system") }, ext4, false, false, "guix"},
		"guix as a package manager":      {func(h *host) { h.dir(h.top, "gnu/store"); h.dir(h.top, "var/guix/profiles") }, ext4, false, false, ""},
		"Ubuntu Core":                    {func(h *host) { h.file(h.top, "usr/lib/os-release", "NAME=\"Ubuntu Core\"\nID=ubuntu-core\n") }, ext4, true, false, "ubuntu-core"},
		"Ubuntu Core on its squashfs":    {func(h *host) { h.file(h.top, "etc/os-release", "ID=\"ubuntu-core\"\n") }, sys.Mount{FSType: "squashfs"}, true, false, "ubuntu-core"},
		"Ubuntu":                         {func(h *host) { h.file(h.top, "etc/os-release", "ID_LIKE=debian\nID=ubuntu\n") }, ext4, true, false, ""},
		"an os-release that is no file":  {func(h *host) { h.dir(h.top, "etc/os-release") }, ext4, true, false, ""},
		"an os-release that leads out":   {func(h *host) { h.link("/../../../../../etc/passwd", h.top, "etc/os-release") }, ext4, true, false, ""},
		"an os-release that leads to one": {func(h *host) {
			h.link("/usr/lib/os-release", h.top, "etc/os-release")
			h.file(h.top, "usr/lib/os-release", "ID=ubuntu-core\n")
		}, ext4, true, false, "ubuntu-core"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			if tt.make != nil {
				tt.make(h)
			}
			if got := h.kind(tt.m, tt.live, !tt.sub); got != tt.want {
				t.Errorf("Kind = %q; want %q", got, tt.want)
			}
		})
	}
}

// A stack of devices that leads back to itself ends.
func TestStackThatHasNoEnd(t *testing.T) {
	h := newHost(t)
	h.file(h.sys, "dev/block/254:3/dm/uuid", "LVM-abc\n")
	h.link("../../254:3", h.sys, "dev/block/254:3/slaves/dm-3")
	if got := h.kind(sys.Mount{FSType: "ext4", Major: 254, Minor: 3}, true, true); got != "" {
		t.Errorf("Kind = %q; want none", got)
	}
}
