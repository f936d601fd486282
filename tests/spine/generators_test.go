package spine

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
)

// A generator that is nobody's but ours. It writes down what it was given, so that a
// preview that gives it something else shows as a difference.
const appGenerator = `#!/bin/sh
[ -n "$1" ] && [ -n "$2" ] && [ -n "$3" ] || exit 1
mkdir -p "$1/multi-user.target.wants"
while read -r name value; do
	cat >"$1/app-$name.service" <<EOF
# made at $(date +%s%N)
[Unit]
SourcePath=/etc/app/instances
[Service]
Environment=VALUE=$value SCOPE=$SYSTEMD_SCOPE INITRD=$SYSTEMD_IN_INITRD FIRST=$SYSTEMD_FIRST_BOOT ARCH=$SYSTEMD_ARCHITECTURE VIRT=$SYSTEMD_VIRTUALIZATION
ExecStart=/usr/bin/sleep infinity
EOF
	ln -s "../app-$name.service" "$1/multi-user.target.wants/"
done </etc/app/instances
`

const initScript = `#!/bin/sh
### BEGIN INIT INFO
# Provides:          NAME
# Required-Start:    $remote_fs
# Required-Stop:     $remote_fs
# Default-Start:     2 3 4 5
# Default-Stop:      0 1 6
# Short-Description: TEXT
### END INIT INFO
case $1 in
start) start-stop-daemon --start --background --make-pidfile --pidfile /run/NAME.pid --exec /usr/bin/sleep -- infinity ;;
stop) start-stop-daemon --stop --pidfile /run/NAME.pid ;;
restart) $0 stop; $0 start ;;
*) exit 1 ;;
esac
`

func script(name, text string) string {
	return strings.NewReplacer("NAME", name, "TEXT", text).Replace(initScript)
}

const tables = "tmpfs /srv/a tmpfs size=1m,mode=755 0 0\n"

func generatorFiles(root string) error {
	if err := fixture.Services(root); err != nil {
		return err
	}
	files := map[string]string{
		"etc/fstab": tables, "etc/app/instances": "one 1\n", "etc/init.d/oldd": script("oldd", "An old daemon"), "etc/other.conf": "1\n",
		"usr/lib/systemd/system-generators/app-generator": appGenerator,
		// Never the same twice: nothing of an update is to blame for that.
		"usr/lib/systemd/system-generators/dice-generator": "#!/bin/sh\nprintf '[Service]\\nEnvironment=N=%s\\nExecStart=/usr/bin/sleep infinity\\n' \"$(date +%s%N)\" >\"$1/dice.service\"\nmkdir -p \"$1/multi-user.target.wants\"\nln -s ../dice.service \"$1/multi-user.target.wants/\"\n",
		// What it makes hangs on what no view shows, and it does not end well there.
		"usr/lib/systemd/system-generators/shy-generator": "#!/bin/sh\n[ -c /dev/console ] || { echo no console here >&2; exit 1; }\nprintf '[Service]\\nExecStart=/usr/bin/sleep infinity\\n' >\"$1/shy.service\"\n",
	}
	for name, content := range files {
		at := filepath.Join(root, name)
		mode := os.FileMode(0o644)
		if strings.HasPrefix(content, "#!") {
			mode = 0o755
		}
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(at, []byte(content), mode); err != nil {
			return err
		}
	}
	for _, dir := range []string{"srv/a", "srv/b", "srv/c"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	for _, level := range []string{"2", "3", "4", "5"} {
		dir := filepath.Join(root, "etc/rc"+level+".d")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := os.Symlink("../init.d/oldd", filepath.Join(dir, "S01oldd")); err != nil {
			return err
		}
	}
	return nil
}

// What generators will make is known before the commit, and planned for: on a
// machine of each release what happened is the plan, and nothing more.
func TestGenerators(t *testing.T) {
	t.Parallel()
	for _, root := range []string{"bookworm", "trixie"} {
		t.Run(root, func(t *testing.T) {
			machine.Require(t)
			m := machine.Boot(t, machine.Options{Root: root, ReadOnly: true, Customize: generatorFiles, Programs: machine.Programs(t)})
			m.Shell("systemctl reset-failed")
			for _, unit := range []string{"srv-a.mount", "app-one.service", "oldd.service"} {
				if u := m.Unit(unit); u.ActiveState != "active" {
					t.Fatalf("%s is %s at the start", unit, u.ActiveState)
				}
			}
			virtual(t, m)
			generators(t, m, root)
			if root == "bookworm" {
				loaderCache(t, m)
			}
		})
	}
}

// Who asks in a sandbox of a container what it runs on gets the container's own manager. That on a
// machine that is none it finds none, tests/apt tries with a kernel's scripts.
func virtual(t *testing.T, m *machine.Machine) {
	t.Helper()
	const ask = "systemd-detect-virt; systemd-detect-virt --container; systemd-detect-virt --vm; :"
	in, out := m.Run("liveupd", "exec", "--plan", "--json", "--", "sh", "-c", ask), m.Shell(ask)
	if in.Code != 0 || !strings.Contains(in.Stderr, out) {
		t.Errorf("in the sandbox systemd-detect-virt says %q (status %d); outside %q", in.Stderr, in.Code, out)
	}
}

func generators(t *testing.T, m *machine.Machine, root string) {
	mounted := func(where string) string {
		return strings.TrimSpace(m.Run("findmnt", "-no", "FSTYPE,OPTIONS", where).Stdout)
	}
	tests := []struct {
		name   string
		update func(*fixture.Tree)
		fstab  string // in place of an update: no tree changes the machine's own
		units  map[string]string
		host   change.Action
		path   string // what the units' reasons name
		warns  string
		then   func(*testing.T)
		both   bool // on each release, without LIVEUPD_LONG too
	}{
		{both: true, name: "a file of /etc that no generator reads", update: func(u *fixture.Tree) {
			u.File("etc/other.conf", "2\n", 0o644)
		}},
		{both: true, name: "fstab: options", fstab: "tmpfs /srv/a tmpfs size=2m,mode=755 0 0\n", units: map[string]string{"srv-a.mount": "reload"}, host: change.ActionDaemonReload, path: "/etc/fstab", then: func(t *testing.T) {
			if got := mounted("/srv/a"); !strings.Contains(got, "size=2048k") {
				t.Errorf("/srv/a is %q; want 2 MB", got)
			}
		}},
		{name: "fstab: another type and device", fstab: "none /srv/a ramfs mode=755 0 0\n", units: map[string]string{"srv-a.mount": "restart", "local-fs.target": "restart"}, host: change.ActionDaemonReload, path: "/etc/fstab", then: func(t *testing.T) {
			if got := mounted("/srv/a"); !strings.HasPrefix(got, "ramfs") {
				t.Errorf("/srv/a is %q; want ramfs", got)
			}
		}},
		{name: "fstab: lines that are new, one that need not be there, one for nobody", fstab: tables + "tmpfs /srv/b tmpfs size=1m 0 0\ntmpfs /srv/c tmpfs nofail 0 0\ntmpfs /srv/d tmpfs noauto 0 0\n", units: map[string]string{"srv-b.mount": "start"}, host: change.ActionDaemonReload, path: "/etc/fstab", warns: "/srv/c is mounted at the next boot", then: func(t *testing.T) {
			if got := mounted("/srv/b"); !strings.HasPrefix(got, "tmpfs") {
				t.Errorf("/srv/b is %q; want tmpfs", got)
			}
		}},
		{name: "fstab: a line that goes", fstab: "# none\n", host: change.ActionDaemonReload, warns: "srv-a.mount is no longer in it and stays", then: func(t *testing.T) {
			if got := mounted("/srv/a"); !strings.HasPrefix(got, "tmpfs") {
				t.Errorf("/srv/a is %q; want it as it was", got)
			}
		}},
		{name: "fstab: a comment, and what is for the boot alone", fstab: "# comment\ntmpfs /srv/a tmpfs size=1m,mode=755,x-systemd.mount-timeout=30s 0 2\n", host: change.ActionDaemonReload},
		{both: true, name: "a generator's own configuration: one comes, one differs", update: func(u *fixture.Tree) {
			u.File("etc/app/instances", "one 2\ntwo 1\n", 0o644)
		}, units: map[string]string{"app-one.service": "restart", "app-two.service": "start"}, host: change.ActionDaemonReload, path: "/etc/app/instances"},
		{name: "a generator's own configuration: one goes", update: func(u *fixture.Tree) {
			u.File("etc/app/instances", "two 1\n", 0o644)
		}, units: map[string]string{"app-one.service": "stop", "app-two.service": "start"}, host: change.ActionDaemonReload, path: "/etc/app/instances"},
		{name: "a generator that makes the same by other means", update: func(u *fixture.Tree) {
			u.File("usr/lib/systemd/system-generators/app-generator", strings.Replace(appGenerator, "mkdir -p", "umask 022; mkdir -p", 1), 0o755)
		}, host: change.ActionDaemonReload},
		{name: "a generator that says it otherwise", update: func(u *fixture.Tree) {
			u.File("usr/lib/systemd/system-generators/app-generator", strings.Replace(appGenerator, "SourcePath", "Description=App\nSourcePath", 1), 0o755)
		}, host: change.ActionDaemonReload},
		{name: "a generator that makes another program of it", update: func(u *fixture.Tree) {
			u.File("usr/lib/systemd/system-generators/app-generator", strings.Replace(appGenerator, "infinity", "100000", 1), 0o755)
		}, units: map[string]string{"app-one.service": "restart"}, host: change.ActionDaemonReload, path: "/usr/lib/systemd/system-generators/app-generator"},
		{name: "a generator that is masked", update: func(u *fixture.Tree) {
			u.Symlink("etc/systemd/system-generators/app-generator", "/dev/null")
		}, units: map[string]string{"app-one.service": "stop"}, host: change.ActionDaemonReload, path: "/etc/systemd/system-generators/app-generator"},
		{name: "a generator that is new", update: func(u *fixture.Tree) {
			u.File("usr/lib/systemd/system-generators/new-generator", strings.ReplaceAll(strings.ReplaceAll(appGenerator, "app-$name", "new-$name"), "/etc/app/", "/etc/new/"), 0o755).
				File("etc/new/instances", "x 1\n", 0o644)
		}, units: map[string]string{"new-x.service": "start"}, host: change.ActionDaemonReload},
		{name: "scripts of System V: a new one, and what is said of an old one", update: func(u *fixture.Tree) {
			u.File("etc/init.d/newd", script("newd", "A new daemon"), 0o755)
			for _, level := range []string{"2", "3", "4", "5"} {
				u.Symlink("etc/rc"+level+".d/S01newd", "../init.d/newd")
			}
		}, units: map[string]string{"newd.service": "start"}, host: change.ActionDaemonReload},
	}
	for i, tt := range tests {
		if on := []string{"bookworm", "trixie"}[i%2]; !tt.both && on != root && os.Getenv("LIVEUPD_LONG") != "1" {
			continue // each case on one release
		}
		t.Run(tt.name, func(t *testing.T) {
			up := fixture.NewTree(t, root)
			plan, do := []string{"exec", "--plan"}, []string{"exec", "--yes"}
			if tt.fstab != "" {
				command := []string{"--", "sh", "-c", "printf '%s' \"$0\" >/etc/fstab", tt.fstab}
				plan, do = append(append(plan, "--json"), command...), append(append(do, "--json"), command...)
			} else {
				tt.update(up)
				dir := up.CopyTo(m, fmt.Sprintf("/run/generator%d", i))
				plan, do = append([]string{"apply", "--json", "--plan"}, source(dir)...), append([]string{"apply", "--json", "--yes"}, source(dir)...)
			}
			before := generated(m)
			run := func(args []string) *fixture.Output {
				return fixture.Parse(t, m.Run(append([]string{"/usr/local/bin/liveupd"}, args...)...)).Want(t, 0)
			}
			planned := run(plan)
			units := m.Units()
			applied := run(do)
			if planned.Plan.ID != applied.Plan.ID && tt.fstab == "" {
				t.Errorf("the plan was %s, the apply carried out %s", planned.Plan.ID, applied.Plan.ID)
			}
			if diff := cmp.Diff(orEmpty(tt.units), planned.Actions()); diff != "" {
				t.Errorf("the plan (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(planned.Plan.Units, applied.Plan.Units); diff != "" {
				t.Errorf("the apply's plan is another (-plan +apply):\n%s", diff)
			}
			if planned.Plan.HostAction != tt.host {
				t.Errorf("the host's action is %s (%+v); want %s", planned.Plan.HostAction, planned.Plan.HostReasons, tt.host)
			}
			reasons(t, applied.Plan)
			for _, u := range planned.Plan.Units {
				if tt.path != "" && !u.Propagated && !slices.ContainsFunc(u.Reasons, func(r change.Reason) bool { return r.Path == tt.path }) {
					t.Errorf("%s of %s: %+v; want %s named", u.Action, u.Unit, u.Reasons, tt.path)
				}
			}
			warnings := strings.Join(planned.Plan.Warnings, "\n")
			if !strings.Contains(warnings, tt.warns) {
				t.Errorf("warnings %q; want %q", warnings, tt.warns)
			}
			if shy := strings.Contains(warnings, "shy-generator will make is not known beforehand"); shy != (tt.host != change.ActionNone) {
				t.Errorf("warnings %q: want the generator that no view can run named where it runs, and only there", warnings)
			}
			if dice := strings.Contains(warnings, "dice-generator will make is not known beforehand"); dice != (tt.host != change.ActionNone) {
				t.Errorf("warnings %q: want the generator named that makes something else each time", warnings)
			}
			if strings.Contains(warnings, "app-generator will make") {
				t.Errorf("warnings %q: the view does not give the generator what the manager gives it", warnings)
			}
			w := strings.Join(slices.DeleteFunc(slices.Clone(applied.Report.Warnings), func(w string) bool { return strings.HasPrefix(w, "dice.service: ") }), "\n")
			if strings.Contains(w, "otherwise than was seen") {
				t.Errorf("the generators made something else than was seen beforehand: %s", w)
			}
			after := m.Units()
			var starts []string
			mounts := func(unit string) bool { return strings.HasSuffix(unit, ".mount") } // those have no invocation to compare
			for unit, action := range tt.units {
				if action == "start" && !mounts(unit) {
					starts = append(starts, unit)
				}
			}
			if got, want := machine.Interrupted(units, after), slices.DeleteFunc(restarts(applied.Plan), mounts); !equalSets(got, want) {
				t.Errorf("interrupted were %v; the plan said %v", got, want)
			}
			if got := machine.Started(units, after); !equalSets(slices.DeleteFunc(got, mounts), starts) {
				t.Errorf("started were %v; want %v", got, starts)
			}
			if tt.then != nil {
				tt.then(t)
			}
			readOnlyNow(t, m)
			fixture.In(t, m, "rollback", "--yes").Want(t, 0)
			back := m.Units()
			for unit := range maps.Keys(orEmpty(tt.units)) {
				if got, want := back[unit].ActiveState == "active", units[unit].ActiveState == "active"; got != want {
					t.Errorf("after the rollback %s runs: %t; want %t", unit, got, want)
				}
			}
			if diff := cmp.Diff(before, generated(m)); diff != "" {
				t.Errorf("after the rollback the generated units are others (-before +after):\n%s", diff)
			}
			readOnlyNow(t, m)
		})
	}

	t.Run("what the machine changed before is told, and what becomes of it", func(t *testing.T) {
		// Nobody has reloaded since: systemd's units are of another table.
		m.Shell("mount -o remount,rw / && echo 'one 9' >/etc/app/instances && mount -o remount,ro /")
		defer m.Shell("mount -o remount,rw / && echo 'one 1' >/etc/app/instances && mount -o remount,ro / && systemctl daemon-reload")
		up := fixture.NewTree(t, root).File("etc/systemd/system/none.target", "[Unit]\nDescription=None\n", 0o644)
		units := m.Units()
		out := apply(t, m, up.CopyTo(m, "/run/pending")).Want(t, 0)
		if diff := cmp.Diff(map[string]string{}, out.Actions()); diff != "" {
			t.Errorf("the plan (-want +got):\n%s", diff)
		}
		if w := strings.Join(out.Plan.Warnings, "\n"); !strings.Contains(w, "what app-generator will make is not known beforehand") {
			t.Errorf("the plan warns of %q; want the generator named", w)
		}
		if w := strings.Join(out.Report.Warnings, "\n"); !strings.Contains(w, "app-one.service: its generator made it otherwise") {
			t.Errorf("the report warns of %q; want app-one.service", w)
		}
		if got := machine.Interrupted(units, m.Units()); len(got) > 0 {
			t.Errorf("interrupted were %v; want nothing", got)
		}
		fixture.In(t, m, "rollback", "--yes").Want(t, 0)
	})
}

// generated is what generators have made on a machine, without the times that ours writes.
func generated(m *machine.Machine) string {
	return m.Shell("cd /run/systemd && find generator* -type f -exec sh -c 'echo \"== $1\"; grep -v -e \"^# made at\" -e N= \"$1\"' - {} \\; -o -type l -printf '%p -> %l\\n' | sort")
}

// loaderCache: who finds another library by the loader's cache is restarted, and
// nobody else; the plan says so, and the rollback takes it back.
func loaderCache(t *testing.T, m *machine.Machine) {
	t.Run("another folder of libraries comes first", func(t *testing.T) {
		lib := m.Run("cat", "/usr/lib/x86_64-linux-gnu/libz.so.1.2.13")
		if lib.Code != 0 {
			t.Fatalf("no libz in the machine: %s", lib.Stderr)
		}
		users := fixture.NewTree(t, "bookworm").File("usr/lib/x86_64-linux-gnu/libz.so.1.2.13", lib.Stdout, 0o644)
		want := mapped(m, users)
		if len(want) == 0 {
			t.Fatal("no service maps libz")
		}
		up := fixture.NewTree(t, "bookworm").File("etc/ld.so.conf.d/00-new.conf", "/opt/new/lib\n", 0o644).File("opt/new/lib/libz.so.1.2.13", lib.Stdout, 0o644)
		dir := up.CopyTo(m, "/run/loader")
		resolves := func() string { return m.Shell("ldd /usr/sbin/nginx | grep libz | cut -d'(' -f1") }
		before, tree := resolves(), treeOf(t, m)
		planned := fixture.In(t, m, append([]string{"apply", "--plan"}, source(dir)...)...).Want(t, 0)
		if got := resolves(); got != before {
			t.Errorf("the plan changed what is loaded: %s", got)
		}
		units := m.Units()
		applied := fixture.In(t, m, append([]string{"apply", "--yes", "--expect", planned.Plan.ID}, source(dir)...)...).Want(t, 0)
		var made []string
		for _, p := range planned.Plan.Paths {
			if p.By != "" {
				made = append(made, string(p.Op)+" "+p.Path)
			}
		}
		if diff := cmp.Diff([]string{"replace /etc/ld.so.cache", "add /opt/new/lib/libz.so.1"}, made); diff != "" {
			t.Errorf("ldconfig makes (-want +got):\n%s", diff)
		}
		reasons(t, planned.Plan)
		var got []string
		for _, u := range planned.Plan.Units {
			if u.Action == change.ActionRestart && !u.Propagated {
				got = append(got, u.Unit)
			}
		}
		if !equalSets(got, want) {
			t.Errorf("the plan restarts %v; libz is mapped by %v", got, want)
		}
		if got := machine.Interrupted(units, m.Units()); !equalSets(got, restarts(applied.Plan)) {
			t.Errorf("interrupted were %v; the plan said %v", got, restarts(applied.Plan))
		}
		if got := resolves(); !strings.Contains(got, "/opt/new/lib/libz.so.1") {
			t.Errorf("nginx loads %s; want the new folder's", got)
		}
		fixture.In(t, m, "rollback", "--yes").Want(t, 0)
		if got := resolves(); !strings.Contains(got, "/lib/x86_64-linux-gnu/libz.so.1") {
			t.Errorf("after the rollback nginx loads %s", got)
		}
		same(t, "after the rollback", tree, treeOf(t, m))
	})
	t.Run("an ldconfig that fails refuses the update", func(t *testing.T) {
		tree, units := treeOf(t, m), m.Units()
		up := fixture.NewTree(t, "bookworm").File("etc/ld.so.conf.d/00-new.conf", "/srv\n", 0o644).File("usr/sbin/ldconfig", "#!/bin/sh\necho broken for good >&2\nexit 7\n", 0o755)
		out := apply(t, m, up.CopyTo(m, "/run/broken")).Want(t, 1)
		if !strings.Contains(out.Error, "broken for good") {
			t.Errorf("the error is %q; want the program's words", out.Error)
		}
		if got := machine.Interrupted(units, m.Units()); len(got) > 0 {
			t.Errorf("interrupted were %v", got)
		}
		same(t, "after a refusal", tree, treeOf(t, m))
	})
}
