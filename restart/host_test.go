package restart

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
)

// fakeHost has a procfs of plain files, and programs that only write down how
// they were called; one whose name is in fails ends with that.
func fakeHost(t *testing.T, fails map[string]string) (*Host, *[]string) {
	t.Helper()
	proc := t.TempDir()
	for _, name := range []string{"sys/net/a", "sys/net/eth0.1/b", "sys/fs/binfmt_misc/register", "sys/fs/binfmt_misc/old"} {
		name = filepath.Join(proc, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	calls := &[]string{}
	return &Host{Proc: proc, Run: func(_ context.Context, argv []string, _ ...*os.File) ([]byte, error) {
		*calls = append(*calls, strings.Join(argv, " "))
		if text, bad := fails[argv[0]]; bad {
			return []byte(text), errors.New("exit status 1")
		}
		return nil, nil
	}}, calls
}

// silent is a bus whose units say nothing.
type silent struct{ Bus }

func (silent) Journal(context.Context, string, string, int) string { return "" }

func TestHostSteps(t *testing.T) {
	for _, tt := range []struct {
		do, target, fails string
		result            string
		file, content     string // below proc
		call              string
	}{
		{do: "sysctl", target: "net.a = 1 2", result: done, file: "sys/net/a", content: "1 2\n"},
		{do: "sysctl", target: "net.eth0/1.b = 1", result: done, file: "sys/net/eth0.1/b", content: "1\n"},
		{do: "sysctl", target: "net.none = 1", result: skipped},
		{do: "sysctl", target: "/././etc/passwd = 1", result: skipped},
		{do: "binfmt", target: ":new:M::x::/q:", result: done, file: "sys/fs/binfmt_misc/register", content: ":new:M::x::/q:"},
		{do: "binfmt", target: "-old", result: done, file: "sys/fs/binfmt_misc/old", content: "-1"},
		{do: "binfmt", target: "-../../net/a", result: failed},
		{do: "modules-load", target: "loop", result: done, call: "modprobe -- loop"},
		{do: "modules-load", target: "loop", fails: "No such device", result: skipped, call: "modprobe -- loop"},
		{do: "modules-load", target: "loop", fails: "damaged", result: failed, call: "modprobe -- loop"},
		{do: "modules-unload", target: "loop", fails: "in use", result: skipped, call: "modprobe -r -- loop"},
		{do: "udev-reload", target: "rules", fails: "no", result: failed, call: "udevadm control --reload"},
		{do: "udev-trigger", target: "--action=change --subsystem-match=net", result: done, call: "udevadm trigger --action=change --subsystem-match=net; udevadm settle --timeout=30"},
		{do: "udev-trigger", target: "--action=change", fails: "one device", result: done, call: "udevadm trigger --action=change"},
		{do: "udev-trigger", target: "--action=change --help", result: failed},
		{do: "apparmor", target: "/nowhere/profile", result: skipped},
		{do: "selinux", target: "policy", result: done, call: "load_policy"},
		{do: "initrd", target: "update-initramfs -u -k all", result: done, call: "update-initramfs -u -k all"},
		{do: "health", target: "a.service /bin/true 'a b'", result: done, call: "/bin/true a b"},
		{do: "health", target: "a.service /bin/false", fails: "sick", result: failed},
	} {
		fails := map[string]string{}
		if tt.fails != "" {
			fails = map[string]string{"modprobe": tt.fails, "udevadm": tt.fails, "/bin/false": tt.fails}
		}
		h, calls := fakeHost(t, fails)
		results, err := Run(t.Context(), silent{}, []change.Step{{Do: tt.do, Target: tt.target}}, Options{Host: h, HealthTimeout: 1})
		if len(results) != 1 || results[0].Result != tt.result || (err != nil) != (tt.result == failed) {
			t.Errorf("%s %s: %+v, %v; want %s", tt.do, tt.target, results, err, tt.result)
			continue
		}
		if got := strings.Join(*calls, "; "); tt.call != "" && got != tt.call {
			t.Errorf("%s %s called %q; want %q", tt.do, tt.target, got, tt.call)
		}
		if tt.file != "" {
			if b, err := os.ReadFile(filepath.Join(h.Proc, tt.file)); err != nil || string(b) != tt.content {
				t.Errorf("%s %s wrote %q, %v; want %q", tt.do, tt.target, b, err, tt.content)
			}
		}
	}
}

// The order is that of a boot, whatever order the steps are given in, and the
// first failure ends it.
func TestHostOrder(t *testing.T) {
	h, calls := fakeHost(t, map[string]string{"load_policy": "no"})
	var list []change.Step
	for _, do := range []string{"initrd", "selinux", "modules-load", "udev-trigger", "udev-reload", "hwdb"} {
		list = append(list, change.Step{Do: do, Target: map[string]string{"initrd": "dracut"}[do]})
	}
	results, err := Run(t.Context(), nil, list, Options{Host: h})
	if err == nil || results[0].Result != skipped {
		t.Errorf("Run = %+v, %v; want a failure, and no initrd after it", results, err)
	}
	var verbs []string
	for _, c := range *calls {
		verbs = append(verbs, strings.Join(strings.Fields(c)[:1], ""))
	}
	if d := cmp.Diff([]string{"systemd-hwdb", "udevadm", "udevadm", "udevadm", "modprobe", "load_policy"}, verbs); d != "" {
		t.Error(d)
	}
}

func TestHostInverse(t *testing.T) {
	var in []change.StepResult
	for _, s := range []change.Step{
		{Do: "sysusers", Target: "a"},
		{Do: "tmpfiles", Target: "a"},
		{Do: "modules-load", Target: "m", Undo: "modules-unload"},
		{Do: "sysctl", Target: "a = 2", Undo: "a = 1"},
		{Do: "sysctl", Target: "b = 2"},
		{Do: "binfmt", Target: ":n:", Undo: "-n"},
	} {
		in = append(in, change.StepResult{Step: s, Result: done})
	}
	var got []string
	for _, s := range Inverse(in) {
		got = append(got, s.Do+" "+s.Target)
	}
	if d := cmp.Diff([]string{"binfmt -n", "sysctl a = 1", "modules-unload m", "tmpfiles a"}, got); d != "" {
		t.Error(d)
	}
}
