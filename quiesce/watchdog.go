package quiesce

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/liveupd/liveupd/internal/sys"
)

// DogArg is the hidden verb of the watchdog's process.
const DogArg = "quiesce-watchdog"

// The conversation: the watchdog gets a line for each control group and an empty one, and
// answers "ready". "freeze" starts its clock; "done" ends it. The end of the pipe, or
// of the time, makes it thaw.
const (
	ready    = "ready"
	freezing = "freeze"
	done     = "done"
)

// dog is the watchdog, as its master sees it.
type dog struct {
	cmd *exec.Cmd
	in  io.WriteCloser
}

// program is what the watchdog is started from.
var program = os.Executable

func startDog(list []group) (*dog, error) {
	fail := func(err error) (*dog, error) {
		return nil, fmt.Errorf("cannot start the watchdog of what is to be frozen: %w", err)
	}
	exe, err := program()
	if err != nil {
		return fail(err)
	}
	cmd := exec.Command(exe, DogArg)
	// A session of its own: what ends ours does not end it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return fail(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fail(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return fail(err)
	}
	d := &dog{cmd, in}
	for _, g := range list {
		if _, err = fmt.Fprintln(in, g.dir); err != nil {
			break
		}
	}
	if err == nil {
		_, err = fmt.Fprintln(in)
	}
	if err == nil {
		var line string
		if line, err = bufio.NewReader(out).ReadString('\n'); err == nil && strings.TrimSpace(line) != ready {
			err = fmt.Errorf("it says %q", line)
		}
	}
	if err != nil {
		return fail(errors.Join(err, d.end(false)))
	}
	return d, nil
}

// end lets the watchdog go; where all is not well it thaws first.
func (d *dog) end(well bool) error {
	var err error
	if well {
		err = d.say(done)
	}
	return errors.Join(err, d.in.Close(), d.cmd.Wait())
}

// Watchdog is the main function of DogArg.
func Watchdog() error { return watch(os.Stdin, os.Stdout, Deadline) }

func watch(in io.Reader, out io.Writer, deadline time.Duration) error {
	// Who ends the run by its whole group must not end the thaw.
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	lines := bufio.NewReader(in)
	var list []group
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return nil // the master died before anything was frozen
		}
		if line = strings.TrimSuffix(line, "\n"); line == "" {
			break
		}
		list = append(list, group{dir: line})
	}
	if _, err := fmt.Fprintln(out, ready); err != nil {
		return nil
	}
	said := make(chan string)
	go func() {
		for {
			line, err := lines.ReadString('\n')
			said <- strings.TrimSpace(line)
			if err != nil {
				return
			}
		}
	}()
	var clock <-chan time.Time
	for {
		select {
		case word := <-said:
			switch word {
			case freezing:
				clock = time.After(deadline)
				continue
			case done:
				return nil
			}
		case <-clock:
		}
		return thaw(nil, list)
	}
}

// say tells the watchdog a word.
func (d *dog) say(word string) error {
	_, err := fmt.Fprintln(d.in, word)
	return err
}

// thaw lets groups go on; one that is gone needs nothing.
func thaw(k *sys.Kernel, list []group) error {
	var errs []error
	for _, g := range list {
		if err := g.set(k, "0"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("cannot thaw %s: %w", g.dir, err))
		}
	}
	return errors.Join(errs...)
}

// noteName is the list of what a run has frozen, or is about to.
const noteName = "groups"

func writeNotes(dir string, list []group) error {
	dirs := make([]string, 0, len(list))
	for _, g := range list {
		dirs = append(dirs, g.dir)
	}
	b, err := json.Marshal(dirs)
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err == nil {
		// On a tmpfs: whole or not at all, and gone with the boot, like what is frozen.
		beside := filepath.Join(dir, noteName+".new")
		if err = os.WriteFile(beside, b, 0o600); err == nil {
			err = os.Rename(beside, filepath.Join(dir, noteName))
		}
	}
	if err != nil {
		return fmt.Errorf("cannot note what is to be frozen: %w", err)
	}
	return nil
}

func removeNotes(dir string) error {
	if err := os.Remove(filepath.Join(dir, noteName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot remove the note of what was frozen: %w", err)
	}
	return nil
}

// Left tells whether a run that was killed may have left something frozen.
func Left(notes string) bool {
	_, err := os.Lstat(filepath.Join(notes, noteName))
	return err == nil
}

// Thaw lets go what a run that was killed left frozen; without a note it does nothing.
func Thaw(k *sys.Kernel, notes string) error {
	b, err := os.ReadFile(filepath.Join(notes, noteName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot read the note of what was frozen: %w", err)
	}
	var dirs []string
	if err := json.Unmarshal(b, &dirs); err != nil {
		return fmt.Errorf("cannot read the note of what was frozen: %w", err)
	}
	var list []group
	for _, dir := range dirs {
		list = append(list, group{dir: dir})
	}
	if err := thaw(k, list); err != nil {
		return err
	}
	return removeNotes(notes)
}
