package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/liveupd/liveupd/internal/journal"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/transact"
)

func TestJournalVersion(t *testing.T) {
	var stdout, stderr bytes.Buffer
	if code := run([]string{"--journal-version"}, &stdout, &stderr); code != 0 || stdout.String() != fmt.Sprintln(journal.Version) {
		t.Errorf("exit %d, %q, %s", code, &stdout, &stderr)
	}
}

// notesIn keeps the notes of this boot out of the host's /run.
func notesIn(t *testing.T) {
	t.Helper()
	oldNote, oldAnew := bootNote, startedAnew
	dir := t.TempDir()
	bootNote, startedAnew = filepath.Join(dir, "liveupd/note"), filepath.Join(dir, "liveupd/anew")
	t.Cleanup(func() { bootNote, startedAnew = oldNote, oldAnew })
}

// readOnly makes an ext4 file system with a tree that fill made, and mounts it read-only.
func readOnly(t *testing.T, fill func(root string)) (root string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounts a file system: needs root")
	}
	root = t.TempDir()
	image := filepath.Join(t.TempDir(), "image")
	tool := func(name string, args ...string) string {
		t.Helper()
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %v: %v: %s", name, args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 64<<20); err != nil {
		t.Fatal(err)
	}
	tool("mkfs.ext4", "-q", "-F", image)
	device := tool("losetup", "--find", "--show", image)
	t.Cleanup(func() { tool("losetup", "--detach", device) })
	tool("mount", device, root)
	t.Cleanup(func() { tool("umount", root) })
	fill(root)
	tool("mount", "-o", "remount,ro", root)
	return root
}

// At boot a read-only tree is recovered and is read-only again; where nothing was
// cut in the exchange, nothing at all is written.
func TestBoot(t *testing.T) {
	for _, tt := range []struct {
		name    string
		renames int
		files   int
		says    string
	}{
		{"before the commit point", 0, 0, ""},
		{"at the commit point", 1, 2, "the new tree"},
		{"in the swap", 2, 2, "the new tree"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			notesIn(t)
			var id string
			root := readOnly(t, func(root string) { id = crash(t, root, tt.renames) })
			for i := range 2 {
				var stdout, stderr bytes.Buffer
				if code := run([]string{"--boot", "--root", root}, &stdout, &stderr); code != 0 || stderr.Len() > 0 {
					t.Fatalf("exit %d: %s", code, &stderr)
				}
				if want := tt.says; i == 0 && !strings.Contains(stdout.String(), want) || i == 1 && stdout.Len() > 0 {
					t.Errorf("run %d says %q", i+1, &stdout)
				}
			}
			if files, err := filepath.Glob(filepath.Join(root, "[m-n]*")); err != nil || len(files) != tt.files {
				t.Errorf("the tree holds %q; want %d files", files, tt.files)
			}
			if err := os.WriteFile(filepath.Join(root, "x"), nil, 0o600); err == nil || !strings.Contains(err.Error(), syscall.EROFS.Error()) {
				t.Errorf("the tree is not read-only again: %v", err)
			}
			if tt.files > 0 != noted(bootNote, id) {
				t.Errorf("noted: %v", noted(bootNote, id))
			}
		})
	}
}

// Attempts that died are counted, a person is told, and may try again.
func TestPerson(t *testing.T) {
	notesIn(t)
	var id string
	root := readOnly(t, func(root string) {
		id = crash(t, root, 2)
		dir, err := sys.OpenRoot(filepath.Join(root, transact.Dir, "tx", id))
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		st, err := journal.ReadStatus(dir)
		if err != nil {
			t.Fatal(err)
		}
		st.Attempts = 3
		if err := journal.WriteStatus(nil, dir, st); err != nil {
			t.Fatal(err)
		}
	})
	for _, late := range []bool{false, true} {
		args := []string{"--boot", "--root", root}
		if late {
			args = append(args, "--late")
		}
		var stdout, stderr bytes.Buffer
		if code := run(args, &stdout, &stderr); code != 7 {
			t.Errorf("exit %d; want 7", code)
		}
		want := []string{"THE BOOT STOPS HERE", id, "committing", "3 recoveries were begun", "--boot --again --root " + root, "liveupd.recover=0", root + "/.liveupd/tx/" + id}
		if late {
			want = append(want, "systemctl reboot", "SULOGIN_FORCE")
		} else {
			want = append(want, "type: exit")
		}
		for _, w := range want {
			if !strings.Contains(stderr.String(), w) {
				t.Errorf("late %v: it does not say %q:\n%s", late, w, &stderr)
			}
		}
	}
	var stdout, stderr bytes.Buffer
	if code := run([]string{"--boot", "--again", "--root", root}, &stdout, &stderr); code != 0 || !strings.Contains(stdout.String(), "the new tree") {
		t.Errorf("trying again: exit %d, %s%s", code, &stdout, &stderr)
	}
}

// PID 1 came from a mixed tree where the root was recovered now, and not before it.
func TestMixed(t *testing.T) {
	notesIn(t)
	done := func(did string, missing []string, mounts ...string) recovered {
		r := recovered{mounts: mounts}
		r.ID, r.Did, r.Missing = "x", did, missing
		return r
	}
	for _, tt := range []struct {
		rec  recovered
		want bool
	}{
		{done("finished", nil, "/"), true},
		{done("reversed", nil, "/", "/var"), true},
		{done("finished", nil, "/usr"), true},
		{done("finished", nil, "/var"), false},
		{done("finished", []string{"/usr"}, "/usr"), false},
		{done("removed", nil, "/"), false},
		{done("", nil, "/"), false},
	} {
		if got := mixed(tt.rec); got != tt.want {
			t.Errorf("%+v: %v", tt.rec, got)
		}
	}
	for _, file := range []string{bootNote, startedAnew} {
		if err := writeNote(file, "x"); err != nil {
			t.Fatal(err)
		}
		if mixed(done("finished", nil, "/")) {
			t.Errorf("with %s it boots once more", file)
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
	if !mixed(done("finished", nil, "/")) {
		t.Error("the notes are gone")
	}
	for text, want := range map[string]int{"257.7-1\n": 257, "252": 252, "v254": 0, "": 0} {
		if got := major(text); got != want {
			t.Errorf("%q is %d", text, got)
		}
	}
}
