package nsmount

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
)

// unstaged is a view of the machine in which an update stands that nobody staged.
func (m *machine) unstaged(t *testing.T, changes ...ViewChange) *View {
	t.Helper()
	v, err := OpenView(t.Context(), nil, ViewOptions{Root: m.root, Changes: changes})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func file(path, content string) ViewChange {
	return ViewChange{
		Path: path, Node: &change.Node{Type: change.Regular, Mode: 0o640, UID: 7, GID: 8, Size: int64(len(content))},
		Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content)), nil },
	}
}

func shell(script string) ViewProgram {
	return ViewProgram{Argv: []string{"/bin/sh", "-c", script}, Limit: time.Minute}
}

// What is written into a view of an update that is not staged, what programs make of it,
// and nothing of it in the root.
func TestSession(t *testing.T) {
	m := newMachine(t)
	before := snapshot(t, m.dir) + snapshot(t, m.dir+"/var") + snapshot(t, m.dir+"/var/log") + snapshot(t, m.dir+"/run")
	big := strings.Repeat("content of some size\n", 50000)
	v := m.unstaged(t,
		file("/etc/app/conf", "newer"),
		ViewChange{Path: "/etc/app/gone.d"},
		ViewChange{Path: "/etc/app/link", Node: &change.Node{Type: change.Symlink, Target: "conf"}},
		ViewChange{Path: "/etc/app/same", Node: &change.Node{Type: change.Regular, Mode: 0o600}},
		ViewChange{Path: "/etc/new", Node: &change.Node{Type: change.Directory, Mode: 0o751}},
		file("/etc/new/big", big),
		file("/run/app/mine", "a path of the view's own"),
		file("/var/lib/state", "newer"),
		ViewChange{Path: "/nowhere/at/all"},
		// A link in place of a folder: what was in that is not looked for behind the link.
		ViewChange{Path: "/var/lib/deep", Node: &change.Node{Type: change.Symlink, Target: "/etc/app"}},
		ViewChange{Path: "/var/lib/deep/conf"},
		ViewChange{Path: "/z", Node: &change.Node{Type: change.Symlink, Target: "bin"}},
	)
	res, err := v.Do(t.Context(), ViewSession{
		Programs: []ViewProgram{
			shell("cat /etc/app/conf /etc/app/link /var/lib/state; ls /etc/app /run/app /run/out; stat -c '%a %u %g' /etc/app/conf /etc/app/same /etc/new; stat -c %s /etc/new/big; env | grep MINE"),
			shell("echo one >/run/out/a; mkdir /run/out/d; echo two >/run/out/d/b; ln -s a /run/out/l; ln -s x /etc/made; rm /etc/app/link; (sleep 1000; echo late >/run/out/late) & exit 0"),
			shell("echo more >>/run/out/a; echo broken >&2; exit 3"),
			{Argv: []string{"/bin/sh", "-c", "sleep 1000"}, Limit: 300 * time.Millisecond},
			shell("kill -9 $$"),
			{Argv: []string{"/etc/app/conf"}},
			{Argv: []string{"/bin/nothing"}},
		},
		Env: []string{"MINE=1"}, NoNetwork: true, Fresh: []string{"/run/out"}, Take: []string{"/run/out", "/etc/none"}, Written: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	want := "newernewernewer/etc/app:\nconf\nlink\nremoved\nsame\n\n/run/app:\ndeep\n\n/run/out:\n640 7 8\n600 0 0\n751 0 0\n1050000\nMINE=1\n"
	if diff := cmp.Diff(want, string(res.Programs[0].Output)); diff != "" {
		t.Errorf("the first program saw (-want +got):\n%s", diff)
	}
	ends := make([]string, 0, len(res.Programs))
	for _, p := range res.Programs {
		ends = append(ends, fmt.Sprint(p.Err()))
	}
	for i, want := range []string{"<nil>", "<nil>", "exit status 3", "it did not end in time", "killed by signal: killed", "permission denied", "no such file"} {
		if !strings.Contains(ends[i], want) {
			t.Errorf("program %d ended with %q; want %q", i, ends[i], want)
		}
	}
	if got := string(res.Programs[2].Output); got != "broken\n" {
		t.Errorf("the third program said %q", got)
	}
	var found []string
	for _, f := range res.Found {
		found = append(found, fmt.Sprintf("%s %d %s%s%t", f.Path, f.By, f.Target, bytes.TrimSpace(bytes.ReplaceAll(f.Content, []byte("\n"), []byte(","))), f.Gone))
	}
	slices.Sort(found)
	wantFound := []string{
		"/etc/app/link -1 true", "/etc/made -1 xfalse",
		"/run/out -1 false", "/run/out/a 2 one,more,false", "/run/out/d 1 false", "/run/out/d/b 1 two,false", "/run/out/l 1 afalse",
	}
	if diff := cmp.Diff(wantFound, found); diff != "" {
		t.Errorf("what was found (-want +got):\n%s", diff)
	}
	if after := snapshot(t, m.dir) + snapshot(t, m.dir+"/var") + snapshot(t, m.dir+"/var/log") + snapshot(t, m.dir+"/run"); after != before {
		t.Error("the root is not what it was")
	}
}

// A source that changes while it is read is told as that, and one that cannot be read too.
func TestSessionSourceChanges(t *testing.T) {
	m := newMachine(t)
	short := file("/etc/app/conf", "short")
	short.Node.Size = 100
	if _, err := m.unstaged(t, short).Do(t.Context(), ViewSession{Programs: []ViewProgram{shell("true")}}); !errors.Is(err, change.ErrDrift) {
		t.Errorf("a shorter file: %v; want %v", err, change.ErrDrift)
	}
	// What a signature does not vouch for is not run, were it complete to the last byte.
	forged := file("/etc/app/conf", "#!/bin/sh\n")
	forged.Node.Digest = change.Digest{1}
	if _, err := m.unstaged(t, forged).Do(t.Context(), ViewSession{Programs: []ViewProgram{{Argv: []string{"/etc/app/conf"}}}}); !errors.Is(err, change.ErrVerification) {
		t.Errorf("another digest: %v; want %v", err, change.ErrVerification)
	}
	broken := file("/etc/app/conf", "x")
	broken.Open = func() (io.ReadCloser, error) { return nil, errors.New("no such luck") }
	if _, err := m.unstaged(t, broken).Do(t.Context(), ViewSession{Programs: []ViewProgram{shell("true")}}); err == nil || !strings.Contains(err.Error(), "no such luck") {
		t.Errorf("a file that cannot be read: %v", err)
	}
}

// A session has no network but what it is given; a validator has the host's.
func TestSessionNetwork(t *testing.T) {
	m := newMachine(t)
	count := func(without bool) int {
		res, err := m.unstaged(t, file("/etc/app/conf", "x")).Do(t.Context(), ViewSession{
			Programs: []ViewProgram{shell("cat /proc/net/dev")}, NoNetwork: without,
		})
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(res.Programs[0].Output), ":")
	}
	if n := count(true); n != 1 {
		t.Errorf("%d network devices are seen without a network; want its own loopback", n)
	}
	if n := count(false); n < 1 {
		t.Errorf("%d network devices are seen with the host's network", n)
	}
}
