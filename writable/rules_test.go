package writable

import (
	"crypto/sha256"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
)

// memory is a recorded base.
type memory map[string]*change.Node

func (m memory) Get(p string) (*change.Node, bool) { n, ok := m[p]; return n, ok }

func (m memory) Paths(prefix string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, p := range slices.Sorted(maps.Keys(m)) {
			if in(p, prefix) && !yield(p) {
				return
			}
		}
	}
}

func file(content string) *change.Node {
	return &change.Node{Type: change.Regular, Mode: 0o644, Size: int64(len(content)), Digest: sha256.Sum256([]byte(content))}
}

func link(target string) *change.Node {
	return &change.Node{Type: change.Symlink, Mode: 0o777, Target: target}
}

func dir() *change.Node { return &change.Node{Type: change.Directory, Mode: 0o755} }

// with changes a copy of n.
func with(n *change.Node, f func(*change.Node)) *change.Node {
	c := *n
	f(&c)
	return &c
}

func mode(n *change.Node, m uint32) *change.Node {
	return with(n, func(c *change.Node) { c.Mode = m })
}

var (
	whole   = Options{Whole: true}
	partial = Options{}
	owning  = Options{Owns: []string{"/opt/app", "/srv/www/site", "/usr/local/tool", "/etc/app", "/var/lib/app"}}
	both    = Options{Whole: true, Owns: []string{"/usr", "/opt/app"}, Never: []string{"/usr/share/doc"}}
	nothing = Options{Whole: true, Owns: []string{}}
	running = Options{Whole: true, Kernel: "6.12.1-amd64"}
)

const (
	kept   = change.VerdictKeep
	taken  = change.VerdictTake
	beside = change.VerdictBeside
	gone   = change.VerdictRemove
)

func TestRules(t *testing.T) {
	v1, v2, mine := file("v1"), file("v2 longer"), file("mine")
	tests := []struct {
		name           string
		o              Options
		path           string
		old, new, base *change.Node
		class          change.Class
		verdict        change.Verdict
		warning        bool
		reason         string // part of it; "" wants none
	}{
		// A whole tree and /usr.
		{"usr: new", whole, "/usr/lib/x.so", nil, v1, nil, change.ClassWhole, taken, false, ""},
		{"usr: other", whole, "/usr/lib/x.so", v1, v2, nil, change.ClassWhole, taken, false, ""},
		{"usr: changed by the machine", whole, "/usr/lib/x.so", mine, v2, v1, change.ClassWhole, taken, false, ""},
		{"usr: not shipped", whole, "/usr/lib/x.so", v1, nil, nil, change.ClassWhole, gone, false, ""},
		{"usr: folder not shipped", whole, "/usr/lib/x", dir(), nil, nil, change.ClassWhole, gone, false, ""},
		{"usr: folder becomes a link", whole, "/usr/share/doc/x", dir(), link("y"), nil, change.ClassWhole, taken, false, ""},
		{"usr itself", whole, "/usr", dir(), dir(), nil, change.ClassWhole, taken, false, ""},
		{"not usr: usr2", whole, "/usr2/x", v1, nil, nil, change.ClassAddOnly, kept, false, ""},
		{"usr/local: not shipped", whole, "/usr/local/bin/tool", mine, nil, nil, change.ClassNever, kept, false, ""},
		{"usr/local: shipped", whole, "/usr/local/bin/tool", mine, v1, nil, change.ClassNever, kept, false, "machine's alone"},
		{"usr/local: new", whole, "/usr/local/bin/tool", nil, v1, nil, change.ClassNever, kept, false, "machine's alone"},
		{"usr/local: folder not shipped", whole, "/usr/local", dir(), nil, nil, change.ClassNever, kept, false, ""},
		{"usr/local: becomes a file", whole, "/usr/local", dir(), v1, nil, change.ClassNever, kept, false, "machine's alone"},
		{"not usr/local: usr/locale", whole, "/usr/locale/x", v1, nil, nil, change.ClassWhole, gone, false, ""},
		{"modules of the running kernel", running, "/usr/lib/modules/6.12.1-amd64/kernel/x.ko", v1, nil, nil, change.ClassListed, kept, false, ""},
		{"newer modules of the running kernel", running, "/usr/lib/modules/6.12.1-amd64/kernel/x.ko", v1, v2, nil, change.ClassListed, taken, false, ""},
		{"modules of one that is named alike", running, "/usr/lib/modules/6.12.1-amd64-rt/x.ko", v1, nil, nil, change.ClassWhole, gone, false, ""},
		{"modules of another kernel", running, "/usr/lib/modules/6.12.0-amd64/kernel/x.ko", v1, nil, nil, change.ClassWhole, gone, false, ""},
		{"lost+found on /usr", whole, "/usr/lost+found", dir(), nil, nil, change.ClassNever, kept, false, ""},
		{"store on /usr", whole, "/usr/.liveupd/tx/1/up/x", v1, nil, nil, change.ClassNever, kept, false, ""},

		// Merged-/usr links.
		{"link: other target", whole, "/lib", link("usr/lib"), link("/usr/lib"), nil, change.ClassListed, taken, false, ""},
		{"link: new", whole, "/lib64", nil, link("usr/lib64"), nil, change.ClassListed, taken, false, ""},
		{"link: old and empty", whole, "/libx32", link("usr/libx32"), nil, nil, change.ClassWhole, gone, false, ""},
		{"link: to the loader, from a usr-only tree", whole, "/lib64", link("usr/lib64"), nil, nil, change.ClassListed, kept, false, ""},
		{"link: in a real folder", whole, "/lib32/x", v1, nil, nil, change.ClassListed, kept, false, ""},
		{"unmerged: shipped", whole, "/bin/ls", v1, v2, nil, change.ClassListed, taken, false, ""},
		{"unmerged: not shipped", whole, "/bin/ls", v1, nil, nil, change.ClassListed, kept, false, ""},
		{"lib/x lands in /usr", partial, "/usr/lib/x", v1, v2, nil, change.ClassListed, taken, false, ""},
		{"link in a partial tree", partial, "/lib", link("usr/lib"), nil, nil, change.ClassAddOnly, kept, false, ""},

		// /etc, no recorded base.
		{"etc: new", whole, "/etc/x.conf", nil, v1, nil, change.ClassThreeWay, taken, false, ""},
		{"etc: same", whole, "/etc/x.conf", v1, v1, nil, change.ClassThreeWay, taken, false, ""},
		{"etc: no base", whole, "/etc/x.conf", mine, v1, nil, change.ClassThreeWay, taken, true, "no recorded base"},
		{"etc: no base, mode only", whole, "/etc/x.conf", mode(v1, 0o600), v1, nil, change.ClassThreeWay, taken, true, "no recorded base"},
		{"etc: no base, mtime only", whole, "/etc/x.conf", with(v1, func(n *change.Node) { n.MtimeNS = 5 }), v1, nil, change.ClassThreeWay, taken, false, ""},
		{"etc: the machine's own", whole, "/etc/mine.conf", mine, nil, nil, change.ClassThreeWay, kept, false, ""},
		{"etc: the machine's own folder", whole, "/etc/mine.d", dir(), nil, nil, change.ClassThreeWay, kept, false, ""},
		{"etc: folder, no base", whole, "/etc/x.d", mode(dir(), 0o700), dir(), nil, change.ClassThreeWay, taken, true, "owner, mode"},
		{"etc: the machine's folder becomes a file", whole, "/etc/x", dir(), v1, nil, change.ClassThreeWay, beside, true, "may be its own"},
		{"etc: the machine's file becomes a folder", whole, "/etc/x", mine, dir(), nil, change.ClassThreeWay, taken, true, "no recorded base"},
		{"etc itself", whole, "/etc", dir(), dir(), nil, change.ClassThreeWay, taken, false, ""},

		// /etc with a recorded base.
		{"etc: unchanged", whole, "/etc/x.conf", v1, v2, v1, change.ClassThreeWay, taken, false, ""},
		{"etc: touched only", whole, "/etc/x.conf", with(v1, func(n *change.Node) { n.MtimeNS = 7 }), v2, v1, change.ClassThreeWay, taken, false, ""},
		{
			"etc: labelled only", whole, "/etc/x.conf",
			with(v1, func(n *change.Node) { n.Xattrs = map[string][]byte{"security.selinux": {1}} }), v2, v1, change.ClassThreeWay, taken, false, "",
		},
		{"etc: changed", whole, "/etc/x.conf", mine, v2, v1, change.ClassThreeWay, beside, false, "the machine changed it"},
		{"etc: changed, the update did not", whole, "/etc/x.conf", mine, v1, v1, change.ClassThreeWay, beside, false, "the machine changed it"},
		{"etc: changed to what the update ships", whole, "/etc/x.conf", v2, v2, v1, change.ClassThreeWay, taken, false, ""},
		{"etc: mode changed", whole, "/etc/x.conf", mode(v1, 0o600), v2, v1, change.ClassThreeWay, beside, false, "the machine changed it"},
		{"etc: owner changed", whole, "/etc/x.conf", with(v1, func(n *change.Node) { n.GID = 42 }), v2, v1, change.ClassThreeWay, beside, false, "the machine changed it"},
		{
			"etc: ACL changed", whole, "/etc/x.conf",
			with(v1, func(n *change.Node) { n.Xattrs = map[string][]byte{"system.posix_acl_access": {1}} }), v2, v1, change.ClassThreeWay, beside, false, "the machine changed it",
		},
		{"etc: replaced by a link", whole, "/etc/x.conf", link("/srv/x"), v2, v1, change.ClassThreeWay, beside, false, "the machine changed it"},
		{"etc: link moved", whole, "/etc/localtime", link("/usr/share/zoneinfo/Asia/Tokyo"), link("/usr/share/zoneinfo/UTC"), link("/usr/share/zoneinfo/Etc/UTC"), change.ClassThreeWay, beside, false, "the machine changed it"},
		{"etc: content not read", whole, "/etc/x.conf", with(v1, func(n *change.Node) { n.Digest = change.Digest{} }), v2, v1, change.ClassThreeWay, beside, false, "the machine changed it"},
		{"etc: deleted, same in the update", whole, "/etc/x.conf", nil, v1, v1, change.ClassThreeWay, kept, false, "the machine removed it"},
		{"etc: deleted, newer in the update", whole, "/etc/x.conf", nil, v2, v1, change.ClassThreeWay, beside, true, "the machine removed it"},
		{"etc: folder deleted", whole, "/etc/x.d", nil, mode(dir(), 0o700), dir(), change.ClassThreeWay, kept, false, "nothing below it"},
		{"etc: dropped, unchanged", whole, "/etc/x.conf", v1, nil, v1, change.ClassThreeWay, gone, false, ""},
		{"etc: dropped, changed", whole, "/etc/x.conf", mine, nil, v1, change.ClassThreeWay, kept, false, "the machine changed it"},
		{"etc: dropped and gone", whole, "/etc/x.conf", nil, nil, v1, change.ClassThreeWay, kept, false, ""},
		{"etc: folder dropped, unchanged", whole, "/etc/x.d", dir(), nil, dir(), change.ClassThreeWay, gone, false, ""},
		{"etc: folder's mode changed", whole, "/etc/x.d", mode(dir(), 0o700), mode(dir(), 0o711), dir(), change.ClassThreeWay, kept, false, "folder's owner"},
		{"etc: folder became a link", whole, "/etc/x.d", link("/srv/x.d"), mode(dir(), 0o711), dir(), change.ClassThreeWay, kept, true, "nothing below it"},
		{"etc: unchanged folder becomes a file", whole, "/etc/x", dir(), v1, dir(), change.ClassThreeWay, taken, false, ""},
		{"etc: enabled by the machine", whole, "/etc/systemd/system/multi-user.target.wants/x.service", link("/usr/lib/systemd/system/x.service"), nil, nil, change.ClassThreeWay, kept, false, ""},
		{"etc: enabled by the update", whole, "/etc/systemd/system/multi-user.target.wants/x.service", nil, link("/usr/lib/systemd/system/x.service"), nil, change.ClassThreeWay, taken, false, ""},
		{
			"etc: disabled by the machine", whole, "/etc/systemd/system/multi-user.target.wants/x.service",
			nil, link("/usr/lib/systemd/system/x.service"), link("/usr/lib/systemd/system/x.service"), change.ClassThreeWay, kept, false, "the machine removed it",
		},
		{
			"etc: no longer enabled", whole, "/etc/systemd/system/multi-user.target.wants/x.service",
			link("/usr/lib/systemd/system/x.service"), nil, link("/usr/lib/systemd/system/x.service"), change.ClassThreeWay, gone, false, "",
		},
		{"etc: masked by the machine", whole, "/etc/systemd/system/x.service", link("/dev/null"), v2, v1, change.ClassThreeWay, beside, false, "the machine changed it"},

		// /etc and a partial tree.
		{"partial etc: no base", partial, "/etc/x.conf", mine, v1, nil, change.ClassThreeWay, taken, true, "no recorded base"},
		{"partial etc: changed", partial, "/etc/x.conf", mine, v2, v1, change.ClassThreeWay, beside, false, "the machine changed it"},
		{"partial etc: not shipped", partial, "/etc/x.conf", v1, nil, v1, change.ClassThreeWay, kept, false, ""},
		{"partial etc itself", partial, "/etc", mode(dir(), 0o700), dir(), nil, change.ClassThreeWay, kept, false, ""},
		{"partial passwd", partial, "/etc/passwd", mine, v1, nil, change.ClassThreeWay, taken, true, "no recorded base"},

		// Who this machine is.
		{"passwd, no base", whole, "/etc/passwd", mine, v1, nil, change.ClassThreeWay, beside, true, "who may use it"},
		{"group, no base", whole, "/etc/group", mine, v1, nil, change.ClassThreeWay, beside, true, "who may use it"},
		{"resolv.conf, no base", whole, "/etc/resolv.conf", link("/run/systemd/resolve/stub-resolv.conf"), v1, nil, change.ClassThreeWay, beside, true, "who this machine is"},
		{"hostname, same", whole, "/etc/hostname", v1, v1, nil, change.ClassThreeWay, taken, false, ""},
		{"hostname, new", whole, "/etc/hostname", nil, v1, nil, change.ClassThreeWay, taken, false, ""},
		{"hostname, unchanged", whole, "/etc/hostname", v1, v2, v1, change.ClassThreeWay, taken, false, ""},

		// /var and /boot.
		{"var: new", whole, "/var/lib/x/seed", nil, v1, nil, change.ClassAddOnly, taken, false, ""},
		{"var: there", whole, "/var/lib/x/seed", mine, v1, nil, change.ClassAddOnly, kept, false, "only adds"},
		{"var: there and the same", whole, "/var/lib/x/seed", v1, v1, nil, change.ClassAddOnly, kept, false, ""},
		{"var: not shipped", whole, "/var/lib/postgresql/16/main", dir(), nil, nil, change.ClassAddOnly, kept, false, ""},
		{"var: not shipped, in the base", whole, "/var/lib/x/seed", v1, nil, v1, change.ClassAddOnly, kept, false, ""},
		{"var: empty in the tree", whole, "/var", mode(dir(), 0o711), dir(), nil, change.ClassAddOnly, kept, false, ""},
		{"var: folder becomes a file", whole, "/var/lib/x", dir(), v1, nil, change.ClassAddOnly, kept, false, "only adds"},
		{"boot: a new kernel", whole, "/boot/vmlinuz-2", nil, v1, nil, change.ClassAddOnly, taken, false, ""},
		{"boot: the old kernel", whole, "/boot/vmlinuz-1", v1, nil, nil, change.ClassAddOnly, kept, false, ""},
		{"boot: grub.cfg", whole, "/boot/grub/grub.cfg", mine, v1, nil, change.ClassAddOnly, kept, false, "only adds"},
		{"partial var: there", partial, "/var/lib/x/seed", mine, v1, nil, change.ClassAddOnly, kept, false, "only adds"},

		// Never.
		{"home: empty in the tree", whole, "/home", dir(), dir(), nil, change.ClassNever, kept, false, ""},
		{"home: not shipped", whole, "/home", dir(), nil, nil, change.ClassNever, kept, false, ""},
		{"home: a user", whole, "/home/ann/.bashrc", mine, nil, nil, change.ClassNever, kept, false, ""},
		{"home: missing on the machine", whole, "/home/ann/.bashrc", nil, v1, nil, change.ClassNever, kept, false, "machine's alone"},
		{"home: partial tree", partial, "/home/ann/.bashrc", mine, v1, nil, change.ClassNever, kept, false, "machine's alone"},
		{"root: mode", whole, "/root", mode(dir(), 0o700), dir(), nil, change.ClassNever, kept, false, ""},
		{"root: keys", partial, "/root/.ssh/authorized_keys", nil, v1, nil, change.ClassNever, kept, false, "machine's alone"},
		{"dev: a node", whole, "/dev/null", nil, &change.Node{Type: change.CharDevice}, nil, change.ClassNever, kept, false, "machine's alone"},
		{"run", whole, "/run/lock", dir(), nil, nil, change.ClassNever, kept, false, ""},
		{"not run: runtime", partial, "/runtime/x", nil, v1, nil, change.ClassListed, taken, false, ""},
		{"machine-id", whole, "/etc/machine-id", mine, v1, v1, change.ClassNever, kept, false, "this machine itself"},
		{"machine-id: not shipped", whole, "/etc/machine-id", v1, nil, v1, change.ClassNever, kept, false, ""},
		{"machine-id of dbus", whole, "/var/lib/dbus/machine-id", nil, v1, nil, change.ClassNever, kept, false, "this machine itself"},
		{"host key", whole, "/etc/ssh/ssh_host_ed25519_key", mine, v1, v1, change.ClassNever, kept, false, "this machine itself"},
		{"host key: new", partial, "/etc/ssh/ssh_host_rsa_key.pub", nil, v1, nil, change.ClassNever, kept, false, "this machine itself"},
		{"not a host key", whole, "/etc/ssh/sshd_config", v1, v2, v1, change.ClassThreeWay, taken, false, ""},
		{"fstab", partial, "/etc/fstab", mine, v1, v1, change.ClassNever, kept, false, "this machine itself"},
		{"shadow", whole, "/etc/shadow", mine, v1, v1, change.ClassNever, kept, false, "this machine itself"},
		{"shadow-", whole, "/etc/shadow-", v1, nil, v1, change.ClassNever, kept, false, ""},
		{"gshadow", partial, "/etc/gshadow", nil, v1, nil, change.ClassNever, kept, false, "this machine itself"},
		{"store", whole, "/.liveupd/tx", dir(), nil, nil, change.ClassNever, kept, false, ""},
		{"store on /var", partial, "/var/.liveupd/x", nil, v1, nil, change.ClassNever, kept, false, "machine's alone"},
		{"not a store", partial, "/usr/lib/.liveupdate", nil, v1, nil, change.ClassListed, taken, false, ""},

		// The machine's own software.
		{"opt: whole tree", whole, "/opt/app/x", mine, v1, nil, change.ClassNever, kept, false, "machine's alone"},
		{"opt: whole tree lacks it", whole, "/opt/app/x", mine, nil, nil, change.ClassNever, kept, false, ""},
		{"opt: partial tree", partial, "/opt/app/x", v1, v2, nil, change.ClassListed, taken, false, ""},
		{"opt: partial tree lacks it", partial, "/opt/app/y", v1, nil, nil, change.ClassListed, kept, false, ""},
		{"opt itself, partial tree", partial, "/opt", mode(dir(), 0o2775), dir(), nil, change.ClassAddOnly, kept, false, ""},
		{"usr/local itself, partial tree", partial, "/usr/local", mode(dir(), 0o2775), dir(), nil, change.ClassAddOnly, kept, false, ""},

		// Listed.
		{"partial: new", partial, "/usr/lib/x.so", nil, v1, nil, change.ClassListed, taken, false, ""},
		{"partial: other", partial, "/usr/lib/x.so", mine, v1, nil, change.ClassListed, taken, false, ""},
		{"partial: not shipped", partial, "/usr/lib/y.so", mine, nil, nil, change.ClassListed, kept, false, ""},
		{"partial: not shipped, in the base", partial, "/usr/lib/y.so", v1, nil, v1, change.ClassListed, kept, false, ""},
		{"partial: shared folder", partial, "/usr/lib", mode(dir(), 0o700), dir(), nil, change.ClassAddOnly, kept, false, ""},
		{"partial: its folder", partial, "/usr/lib/x", mode(dir(), 0o700), dir(), nil, change.ClassListed, taken, false, ""},
		{"partial: shared folder is missing", partial, "/opt", nil, dir(), nil, change.ClassAddOnly, taken, false, ""},
		{"the root", whole, "/", dir(), mode(dir(), 0o700), nil, change.ClassAddOnly, kept, false, ""},

		// A whole tree and the rest of the root.
		{"data: there", whole, "/data/db", mine, v1, nil, change.ClassAddOnly, kept, false, "only adds"},
		{"data: missing", whole, "/data/db", nil, v1, nil, change.ClassAddOnly, taken, false, ""},
		{"swapfile", whole, "/swapfile", mine, nil, nil, change.ClassAddOnly, kept, false, ""},

		// A manifest that says what it owns.
		{"owned opt: other", owning, "/opt/app/x", mine, v1, nil, change.ClassWhole, taken, false, ""},
		{"owned opt: not shipped", owning, "/opt/app/x", mine, nil, nil, change.ClassWhole, gone, false, ""},
		{"owned opt itself", owning, "/opt/app", dir(), nil, nil, change.ClassWhole, gone, false, ""},
		{"beside owned opt", owning, "/opt/application", mine, nil, nil, change.ClassListed, kept, false, ""},
		{"above owned opt", owning, "/opt", mode(dir(), 0o700), dir(), nil, change.ClassAddOnly, kept, false, ""},
		{"above owned opt, missing", owning, "/opt", nil, dir(), nil, change.ClassAddOnly, taken, false, ""},
		{"above owned srv", owning, "/srv/www", nil, dir(), nil, change.ClassAddOnly, taken, false, ""},
		{"owned in usr/local", owning, "/usr/local/tool/x", mine, nil, nil, change.ClassWhole, gone, false, ""},
		{"owned in etc: changed", owning, "/etc/app/x.conf", mine, v2, v1, change.ClassWhole, taken, false, ""},
		{"owned in var: not shipped", owning, "/var/lib/app/x", mine, nil, nil, change.ClassWhole, gone, false, ""},
		{"beside owned in var", owning, "/var/lib/other/x", mine, nil, nil, change.ClassAddOnly, kept, false, ""},
		{"store in owned", owning, "/opt/app/.liveupd/x", v1, nil, nil, change.ClassNever, kept, false, ""},
		{"owned usr", both, "/usr/lib/x", v1, nil, nil, change.ClassWhole, gone, false, ""},
		{"owned usr less usr/local", both, "/usr/local/bin/x", v1, nil, nil, change.ClassNever, kept, false, ""},
		{"owned, but never", both, "/usr/share/doc/x", v1, nil, nil, change.ClassNever, kept, false, ""},
		{"owned opt of a whole tree", both, "/opt/app/x", v1, nil, nil, change.ClassWhole, gone, false, ""},
		{"other opt of a whole tree", both, "/opt/other", v1, nil, nil, change.ClassNever, kept, false, ""},
		{"whole, owns nothing", nothing, "/usr/lib/x", v1, nil, nil, change.ClassListed, kept, false, ""},
		{"whole, owns nothing: etc", nothing, "/etc/x.conf", v1, nil, v1, change.ClassThreeWay, gone, false, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := tt.o
			if tt.base != nil {
				o.Base = memory{tt.path: tt.base}
			}
			r, err := New(o)
			if err != nil {
				t.Fatal(err)
			}
			if got := r.Class(tt.path); got != tt.class {
				t.Errorf("Class(%s) = %s; want %s", tt.path, got, tt.class)
			}
			got := r.Decide(tt.path, tt.old, tt.new)
			if got.Verdict != tt.verdict || got.Warning != tt.warning ||
				!strings.Contains(got.Reason, tt.reason) || (tt.reason == "") != (got.Reason == "") {
				t.Errorf("Decide(%s) = %+v; want verdict %d, warning %v, reason %q", tt.path, got, tt.verdict, tt.warning, tt.reason)
			}
		})
	}
}

func TestNewRefuses(t *testing.T) {
	for p, want := range map[string]string{
		"/": "others live there", "/etc": "others live there", "/var": "others live there", "/var/lib": "others live there",
		"/opt": "others live there", "/srv": "others live there", "/usr/local": "others live there", "/boot": "others live there",
		"/home": "machine's alone", "/home/kiosk": "machine's alone", "/root": "machine's alone", "/run/x": "machine's alone",
		"/tmp": "machine's alone", "/proc": "machine's alone", "/dev/shm": "machine's alone", "/media/x": "machine's alone",
		"/etc/shadow": "machine's alone", "/etc/fstab": "machine's alone", "/etc/machine-id": "machine's alone",
		"/etc/ssh/ssh_host_rsa_key": "machine's alone", "/.liveupd": "machine's alone", "/var/.liveupd": "machine's alone",
		"/lib/app": "/usr/lib/app", "/bin": "/usr/bin",
		"usr/lib": "not absolute", "/usr/": "not absolute and clean", "/usr/../etc": "not absolute and clean", "": "not absolute",
	} {
		_, err := New(Options{Whole: true, Owns: []string{"/usr/lib/good", p}})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New owning %q = %v; want an error with %q", p, err, want)
		}
	}
	if _, err := New(Options{Never: []string{"usr"}}); err == nil {
		t.Error("New accepts a relative path as never")
	}
}

func TestRecorded(t *testing.T) {
	base := memory{
		"/etc": dir(), "/etc/a": file("a"), "/etc/machine-id": file("id"), "/etc/app/x": file("x"),
		"/etcetera": file("e"), "/usr/lib/x": file("x"), "/var/x": file("x"),
	}
	tests := []struct {
		name string
		o    Options
		want []string
	}{
		{"whole", Options{Whole: true, Base: base}, []string{"/etc", "/etc/a", "/etc/app/x"}},
		{"whole that owns one", Options{Whole: true, Owns: []string{"/etc/app"}, Base: base}, []string{"/etc", "/etc/a"}},
		{"partial", Options{Base: base}, nil},
		{"no base", Options{Whole: true}, nil},
	}
	for _, tt := range tests {
		r, err := New(tt.o)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.want, slices.Collect(r.Recorded())); diff != "" {
			t.Errorf("%s: Recorded() (-want +got):\n%s", tt.name, diff)
		}
		for range r.Recorded() {
			break // an iterator must bear being left
		}
	}
}

// neverSpelt is the list as the documentation spells it, not as the code does.
var neverSpelt = []string{
	"/home", "/root", "/mnt", "/media", "/proc", "/sys", "/dev", "/run", "/tmp", "/etc/machine-id", "/etc/ssh/ssh_host_rsa_key",
	"/etc/fstab", "/etc/shadow", "/etc/shadow-", "/etc/gshadow", "/etc/gshadow-", "/.liveupd", "/usr/.liveupd",
}

// Whatever the tree, its manifest, the base and the objects are: what is the
// machine's alone stays, and a whole tree keeps its hands off /opt, /srv and /usr/local.
func TestNeverProperty(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	pick := func(from ...*change.Node) *change.Node { return from[rnd.IntN(len(from))] }
	owns := [][]string{nil, {}, {"/usr"}, {"/usr", "/etc/ssh", "/etc/app"}, {"/var/lib/app", "/opt/app"}}
	for range 20000 {
		o := Options{Whole: rnd.IntN(2) == 0, Owns: owns[rnd.IntN(len(owns))]}
		spelt := neverSpelt
		if o.Whole {
			spelt = append(slices.Clone(spelt), "/opt/other", "/srv/other", "/usr/local/other")
		}
		p := spelt[rnd.IntN(len(spelt))]
		for range rnd.IntN(3) {
			if !strings.HasPrefix(p, "/etc/") {
				p = path.Join(p, fmt.Sprintf("x%d", rnd.IntN(3)))
			}
		}
		node := func() *change.Node { return pick(nil, dir(), file("a"), file("b"), link("a"), link("b")) }
		o.Base = memory{p: node()}
		if o.Base.(memory)[p] == nil {
			o.Base = nil
		}
		r, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		old, new := node(), node()
		if c, d := r.Class(p), r.Decide(p, old, new); c != change.ClassNever || d.Verdict != change.VerdictKeep {
			t.Fatalf("%+v: %s with %+v and %+v is %s, verdict %d; want never and kept", o, p, old, new, c, d.Verdict)
		}
		for q := range r.Recorded() {
			t.Fatalf("%+v: Recorded() offers %s", o, q)
		}
	}
}

// For any path and objects: a removal only of what is there and not shipped, and
// only of what is owned or recorded; what is laid beside is no folder.
func TestDecideProperty(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 2))
	paths := []string{
		"/usr/lib/x", "/lib64", "/libx32", "/bin/x", "/etc/x", "/etc/passwd", "/var/x", "/boot/x", "/opt/app/x", "/opt/x", "/data", "/srv", "/",
		"/etc/shadow", "/home/x", "/usr/local/x",
	}
	nodes := []*change.Node{nil, dir(), mode(dir(), 0o700), file("a"), file("b"), mode(file("a"), 0o600), link("a"), link("b")}
	for range 50000 {
		o := Options{Whole: rnd.IntN(2) == 0}
		if rnd.IntN(3) == 0 {
			o.Owns = []string{"/opt/app"}
		}
		p := paths[rnd.IntN(len(paths))]
		node := func() *change.Node { return nodes[rnd.IntN(len(nodes))] }
		old, new, base := node(), node(), node()
		if base != nil {
			o.Base = memory{p: base}
		}
		r, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		d, class := r.Decide(p, old, new), r.Class(p)
		bad := ""
		switch d.Verdict {
		case change.VerdictRemove:
			recorded := class == change.ClassThreeWay && o.Whole && base != nil && same(old, base)
			if old == nil || new != nil || class != change.ClassWhole && !recorded {
				bad = "removes what is not owned"
			}
		case change.VerdictTake:
			if new == nil {
				bad = "takes nothing"
			}
			if class == change.ClassAddOnly && old != nil {
				bad = "replaces where it only adds"
			}
		case change.VerdictBeside:
			if new == nil || new.IsDir() || class != change.ClassThreeWay {
				bad = "lays beside what cannot be"
			}
		}
		if d.Warning && d.Reason == "" {
			bad = "warns without a reason"
		}
		if bad != "" {
			t.Fatalf("%+v: %s old %+v new %+v base %+v: %+v %s", o, p, old, new, base, d, bad)
		}
	}
}
