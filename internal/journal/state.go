package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"syscall"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// The files of a transaction's folder.
const (
	FileName  = "journal"
	StateName = "state"
	StepsName = "steps"
)

// Status is what the state file holds.
type Status struct {
	Version  int   `json:"version"`
	State    State `json:"state"`
	Attempts int   `json:"attempts,omitempty"` // recoveries that were begun in this state and did not end
	Time     int64 `json:"time"`               // when the state was entered, seconds since the epoch
	// Before is the state that a rollback began in: the unit steps of a
	// transaction that was never swapped need no inverse.
	Before State `json:"before,omitempty"`
	// What is still to be done by a boot or a person.
	HostAction change.Action `json:"host_action"`
	Deferred   []string      `json:"deferred,omitempty"` // units
	// Waiting are the same units, with what is known of each.
	Waiting []change.Waiting `json:"waiting,omitempty"`
	// CarriedHost is what of HostAction an earlier update had left.
	CarriedHost change.Action `json:"carried_host,omitempty"`
	// PendingBoot is the boot in which that was recorded, by its ID.
	PendingBoot string `json:"pending_boot,omitempty"`
}

// WriteStatus replaces the state file durably. After an error the old or the new
// one is there, never half of one.
func WriteStatus(k *sys.Kernel, dir *sys.FD, st Status) error {
	st.Version = Version
	line, err := encodeLine(st)
	if err != nil {
		return err
	}
	const beside = StateName + ".new"
	if err := k.Unlink(dir, beside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot write state %s: %w", st.State, err)
	}
	write := func() error {
		f, err := k.Create(dir, beside, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := k.Write(f, line); err != nil {
			return err
		}
		if err := k.Fsync(f); err != nil {
			return err
		}
		if err := k.Rename(dir, beside, dir, StateName, 0); err != nil {
			return err
		}
		return k.Fsync(dir)
	}
	if err := write(); err != nil {
		return fmt.Errorf("cannot write state %s: %w", st.State, err)
	}
	return nil
}

// ReadStatus reads the state file; fs.ErrNotExist where there is none yet.
func ReadStatus(dir *sys.FD) (Status, error) {
	b, err := readFile(dir, StateName, 1<<20)
	if err != nil {
		return Status{}, err
	}
	body, ok := checkLine(b)
	var st Status
	if !ok {
		return st, corrupt(dir.Name()+"/"+StateName, 0, "the checksum does not match")
	}
	if err := json.Unmarshal(body, &st); err != nil {
		return st, corrupt(dir.Name()+"/"+StateName, 0, "%v", err)
	}
	if st.Version != Version {
		return st, fmt.Errorf("cannot read %s/%s: %w: %d, this program reads %d", dir.Name(), StateName, ErrVersion, st.Version, Version)
	}
	if !st.State.valid() {
		return st, corrupt(dir.Name()+"/"+StateName, 0, "state %q is unknown", st.State)
	}
	return st, nil
}

// AppendStep records a step durably: once before it is done (Result "begun") and
// once after.
func AppendStep(k *sys.Kernel, dir *sys.FD, r change.StepResult) error {
	line, err := encodeLine(change.Escaped(r))
	if err != nil {
		return err
	}
	f, err := k.OpenAppend(dir, StepsName)
	if err != nil {
		return fmt.Errorf("cannot record step %d: %w", r.Step.Seq, err)
	}
	defer f.Close()
	// A torn line of an earlier crash must not swallow this one.
	if err := k.Write(f, append([]byte{'\n'}, line...)); err != nil {
		return fmt.Errorf("cannot record step %d: %w", r.Step.Seq, err)
	}
	if err := k.Fsync(f); err != nil {
		return fmt.Errorf("cannot record step %d: %w", r.Step.Seq, err)
	}
	return nil
}

// ReadSteps reads the recorded steps in order; lines that a crash tore are left out.
func ReadSteps(dir *sys.FD) ([]change.StepResult, error) {
	b, err := readFile(dir, StepsName, maxLine)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return ParseSteps(b), nil
}

// ParseSteps reads the bytes of a steps file.
func ParseSteps(b []byte) []change.StepResult {
	var out []change.StepResult
	for line := range lines(b) {
		var r change.StepResult
		if body, ok := checkLine(line); ok && change.Decode(body, &r) == nil {
			out = append(out, r)
		}
	}
	return out
}

func lines(b []byte) func(func([]byte) bool) {
	return func(yield func([]byte) bool) {
		start := 0
		for i, c := range b {
			if c == '\n' {
				if !yield(b[start : i+1]) {
					return
				}
				start = i + 1
			}
		}
	}
}

func readFile(dir *sys.FD, name string, limit int64) ([]byte, error) {
	f, err := sys.OpenAt(dir, name, sys.OpenRead|sys.OpenNoLink|syscall.O_NONBLOCK, sys.ResolveBeneath|sys.ResolveNoSymlinks|sys.ResolveNoXDev)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read %s/%s: %w", dir.Name(), name, err)
	}
	if int64(len(b)) > limit {
		return nil, corrupt(dir.Name()+"/"+name, 0, "it is longer than %d bytes", limit)
	}
	return b, nil
}
