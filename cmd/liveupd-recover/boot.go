package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/nsmount"
	"github.com/liveupd/liveupd/transact"
)

// Where this boot's recoveries are noted: /run goes from the initrd to the
// system, stays over a soft-reboot, and ends with the boot.
var (
	bootNote    = "/run/liveupd/recovered-at-boot"
	startedAnew = "/run/liveupd/started-anew"
)

// notesDir is the engine's: who comes next puts back what a killed one owes.
const notesDir = "/run/liveupd/read-only"

// off tells whether somebody wants to boot without: liveupd.recover=0 on the kernel's
// command line.
func off() bool {
	b, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return false
	}
	is := false
	for f := range strings.FieldsSeq(string(b)) {
		if v, ok := strings.CutPrefix(f, "liveupd.recover="); ok {
			is = v == "0"
		}
	}
	return is
}

// atBoot recovers a tree that may be read-only, before it is used, and puts the
// flags back. Where nothing was cut in the exchange it changes nothing at all.
func atBoot(root string, again bool, warn io.Writer) (rec recovered, err error) {
	if _, err := os.Lstat(filepath.Join(root, transact.Dir, "tx")); errors.Is(err, os.ErrNotExist) {
		return rec, nil
	}
	r, err := nsmount.Open(root, true)
	if err != nil {
		return rec, err
	}
	defer r.Close()
	var vols []transact.Volume
	mounts := []string{"/"}
	for _, v := range r.Volumes() {
		vols = append(vols, transact.Volume{Mount: v.Mount, Dir: v.Dir, ID: v.ID})
		if _, err := sys.Lstat(v.Dir, transact.Dir); err == nil && v.Mount != "/" {
			mounts = append(mounts, v.Mount)
		}
	}
	store, err := transact.Read(vols)
	if err != nil {
		return rec, err
	}
	cut, err := store.Cut()
	store.Close()
	if err != nil || len(cut) == 0 {
		return rec, err
	}
	if root == "/" {
		// One that is killed here leaves a note for the next.
		if _, err := r.Remember(nil, notesDir); err != nil {
			fmt.Fprintf(warn, "liveupd-recover: %v\n", err)
		}
	}
	defer func() { putBack(r, warn) }()
	if err := r.MakeWritable(nil, mounts...); err != nil {
		return rec, fmt.Errorf("cannot recover %s: %w", root, err)
	}
	return recoverVolumes(vols, again)
}

// recovered is what a recovery did, and the mounts that its transaction changes.
type recovered struct {
	transact.Recovery
	mounts []string
}

func recoverVolumes(vols []transact.Volume, again bool) (rec recovered, err error) {
	store, err := transact.Open(nil, vols)
	if err != nil {
		return rec, err
	}
	defer store.Close()
	if err := store.Lock(); err != nil {
		return rec, err
	}
	if again {
		if err := store.ForgetAttempts(); err != nil {
			return rec, err
		}
	}
	if rec.Recovery, err = store.Recover(context.Background()); err != nil || rec.Did == "" || rec.Did == "removed" {
		return rec, err
	}
	tx, err := store.Load(rec.ID)
	if err != nil {
		return rec, err
	}
	defer tx.Close()
	rec.mounts = tx.Mounts()
	return rec, nil
}

// putBack makes read-only again what was. Where that is refused the system's own
// mounts keep their flags: it is a warning.
func putBack(r *nsmount.Root, warn io.Writer) {
	var err error
	for range 20 {
		if _, err = r.Restore(); err == nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	fmt.Fprintf(warn, "liveupd-recover: a file system was not put back to read-only: %v\n", err)
}

// note is what a recovery before PID 1 tells the one after it.
type note struct {
	ID string `json:"id"`
}

func writeNote(file, id string) error {
	b, err := json.Marshal(note{id})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	return os.WriteFile(file, append(b, '\n'), 0o600)
}

// noted tells whether a note names the transaction.
func noted(file, id string) bool {
	b, err := os.ReadFile(file)
	var n note
	return err == nil && json.Unmarshal(b, &n) == nil && n.ID == id
}

// person tells whoever stands at the console what has happened, in which state the
// tree is, and what to type.
func person(w io.Writer, root string, late bool, rec recovered, cause error) {
	line := strings.Repeat("*", 76)
	fmt.Fprintf(w, "\n%s\nliveupd: THE BOOT STOPS HERE: a person is needed\n%s\n\n", line, line)
	fmt.Fprintf(w, "An update of this machine was cut short, and it could not be finished or taken\nback by itself. What lies on the disk is partly the old and partly the new tree.\nNothing should be started from it.\n\n")
	tx := filepath.Join(root, transact.Dir, "tx")
	if rec.ID != "" {
		fmt.Fprintf(w, "  transaction   %s\n  found in      %s\n", rec.ID, rec.Found)
		tx = filepath.Join(tx, rec.ID)
	}
	fmt.Fprintf(w, "  because       %v\n", cause)
	if hint, ok := errors.AsType[*change.HintError](cause); ok {
		fmt.Fprintf(w, "                %s\n", hint.Hint)
	}
	leave, locked := "leave this shell (type: exit), and the machine boots on", ""
	if late {
		leave = "start the machine anew:   systemctl reboot"
		locked = `
     No shell, because the root account is locked? Boot with
     systemd.setenv=SYSTEMD_SULOGIN_FORCE=1 on the kernel's command line.
`
	}
	fmt.Fprintf(w, `
What to do:

  1. Look at the disk: is there an error, is it full or read-only?
         dmesg | tail -n 30
  2. Try again, as often as you like; nothing is lost by it:
         %s --boot --again --root %s
  3. When that says "the old tree" or "the new tree",
         %s
  4. If it does not: save %s, and put the machine back from
     a backup or another image. What was replaced lies in %s/up.
     To boot what is there, as it is: liveupd.recover=0 on the kernel's command line.
%s
`, own(), root, leave, filepath.Join(root, transact.Dir), tx, locked)
}

// own is how this program is called from the shell that a person gets.
func own() string {
	exe, err := os.Executable()
	if err != nil || filepath.Dir(exe) == "/usr/bin" {
		return "liveupd-recover"
	}
	if real, err := filepath.EvalSymlinks(exe); err == nil {
		return real
	}
	return exe
}
