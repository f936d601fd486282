package engine

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/systemd/systemdtest"
)

// checkAs runs check in a process of its own: by setpriv(1) with fewer rights.
func checkAs(t *testing.T, units []string, hidepid string, setpriv ...string) *change.CheckReport {
	t.Helper()
	// The folder of the machine's root may be closed to others.
	self := filepath.Join(t.TempDir(), "test.bin")
	program, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(self, program, 0o755)
	}
	for dir := filepath.Dir(self); err == nil && dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	script := `exec "$@"`
	if hidepid != "" {
		script = "mount --make-rprivate / && mount -t proc -o hidepid=" + hidepid + " proc /proc && " + script
	}
	args := append([]string{"-c", script, "sh", "setpriv"}, setpriv...)
	cmd := exec.Command("sh", append(args, self, "-test.run=^TestInsideCheckChild$")...)
	cmd.Env = append(os.Environ(), "LIVEUPD_TEST_CHECK=1", "LIVEUPD_TEST_UNITS="+strings.Join(units, " "))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("check as %v: %v\n%s", setpriv, err, out)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	r := &change.CheckReport{}
	if err := json.Unmarshal([]byte(line), r); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return r
}

func TestInsideCheckChild(t *testing.T) {
	if os.Getenv("LIVEUPD_TEST_CHECK") == "" {
		t.Skip("is started by TestInsideCheckWithFewerRights")
	}
	r, err := (&Engine{}).Run(t.Context(), Request{Verb: "check", Root: "/", Units: strings.Fields(os.Getenv("LIVEUPD_TEST_UNITS"))}, Events{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stdout.Write(append(b, '\n')); err != nil {
		t.Fatal(err)
	}
}

// Who may not see all gets what may be seen, and is told that it is not all.
func TestInsideCheckWithFewerRights(t *testing.T) {
	systemdtest.NeedInside(t)
	const etc, dir = "/etc/systemd/system/", "/opt/lu-look"
	names := []string{"lu-roots.service", "lu-nobodys.service"}
	t.Cleanup(func() {
		for _, name := range names {
			_ = exec.Command("systemctl", "stop", name).Run()
			_ = os.Remove(etc + name)
		}
		_ = os.RemoveAll(dir)
		_ = exec.Command("systemctl", "daemon-reload").Run()
	})
	sleep, err := os.ReadFile("/bin/sleep")
	if err != nil {
		t.Fatal(err)
	}
	other, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	put(t, dir+"/daemon", string(sleep))
	tell(t, "chmod", "755", dir, dir+"/daemon")
	put(t, etc+names[0], "[Service]\nType=exec\nExecStart="+dir+"/daemon infinity\n")
	put(t, etc+names[1], "[Service]\nType=exec\nUser=nobody\nExecStart="+dir+"/daemon infinity\n")
	tell(t, "systemctl", "daemon-reload")
	tell(t, "systemctl", "start", names[0], names[1])
	put(t, dir+"/daemon.new", string(other))
	tell(t, "chmod", "755", dir+"/daemon.new")
	tell(t, "mv", dir+"/daemon.new", dir+"/daemon")
	time.Sleep(10 * time.Millisecond)

	nobody := []string{"--reuid=65534", "--regid=65534", "--clear-groups"}
	noPtrace := []string{"--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"}
	for _, c := range []struct {
		name    string
		hidepid string
		setpriv []string
		sees    []string // of the two units
		gap     string   // "" where there must be none
	}{
		{"root", "", []string{"--reuid=0"}, names, ""},
		{"root below hidepid=2", "2", []string{"--reuid=0"}, names, ""},
		{"an ordinary user", "", nobody, names[1:], "not permitted"},
		{"an ordinary user below hidepid=1", "1", nobody, names[1:], "not permitted"},
		{"an ordinary user below hidepid=2", "2", nobody, names[1:], "hidepid="},
		{"root without CAP_SYS_PTRACE", "", noPtrace, nil, "not permitted"},
		// Group 0 is free of hidepid= where no other is named.
		{"root without CAP_SYS_PTRACE below hidepid=2", "2", noPtrace, nil, "not permitted"},
		{"root without any capability", "", []string{"--bounding-set=-all", "--inh-caps=-all"}, nil, "not permitted"},
	} {
		r := checkAs(t, nil, c.hidepid, c.setpriv...)
		var sees []string
		for _, u := range r.Units {
			if slices.Contains(names, u.Unit) && u.Action == change.ActionRestart {
				sees = append(sees, u.Unit)
			}
		}
		slices.Sort(sees)
		want := slices.Sorted(slices.Values(c.sees))
		if !slices.Equal(sees, want) {
			t.Errorf("%s: sees %q; want %q", c.name, sees, want)
		}
		gaps := strings.Join(r.Gaps, "; ")
		if c.gap == "" {
			if r.Incomplete || r.Unread != 0 || gaps != "" {
				t.Errorf("%s: incomplete %v, %d unread: %s", c.name, r.Incomplete, r.Unread, gaps)
			}
		} else if !r.Incomplete || r.Unread < 5 || !strings.Contains(gaps, c.gap) {
			t.Errorf("%s: incomplete %v, %d unread: %s", c.name, r.Incomplete, r.Unread, gaps)
		}
		t.Logf("%s: %d looked at, %d unread: %s", c.name, r.Examined, r.Unread, gaps)
		if c.gap == "" || len(c.sees) > 0 && c.sees[0] == names[0] {
			continue
		}
		r = checkAs(t, names[:1], c.hidepid, c.setpriv...)
		if len(r.Explanations) != 1 || r.Explanations[0].Unread != 1 || r.Explanations[0].Action != change.ActionNone {
			t.Errorf("%s: asked about %s: %+v", c.name, names[0], r.Explanations)
		}
	}
}
