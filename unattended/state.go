package unattended

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/config"
)

// Dir is where runs keep what the next one needs. An update leaves it alone.
const Dir = "/var/lib/liveupd"

// The files in it. runName is there only while a run is under way: a unit's
// ConditionPathExists= asks for it at boot.
const (
	stateName = "unattended.json"
	runName   = "unattended-run.json"
	motdName  = "motd"
)

const version = 1

// State is what one run tells the next.
type State struct {
	Version int           `json:"version"`
	Last    *change.Night `json:"last,omitempty"`
	// Looked is the last one that was not skipped: what went wrong in it still stands.
	Looked  *change.Night    `json:"last_looked,omitempty"`
	Changed *change.Night    `json:"last_change,omitempty"`
	BackOff []change.BackOff `json:"back_off,omitempty"`
	// TakenBack is the last transaction of a night that was noted as rolled back by hand.
	TakenBack string           `json:"taken_back,omitempty"`
	Runs      map[string]int64 `json:"runs,omitempty"` // how many ended so, by result
}

// Phases of a run.
const (
	phaseWaiting  = "waiting"
	phasePlanning = "planning"
	phasePre      = "pre"
	phaseUpdate   = "update"   // agreed to: a transaction may exist
	phaseCanary   = "canary"   // committed, the units of a group restarted, not yet found well
	phaseGroup    = "group"    // the units of a further group are being restarted
	phaseRollback = "rollback" // decided: the transaction is to be taken back
	phaseDeferred = "deferred"
	phaseReboot   = "reboot" // asked for
)

// Progress is how far a run has come.
type Progress struct {
	Version int            `json:"version"`
	Phase   string         `json:"phase"`
	Boot    string         `json:"boot"`             // the kernel's boot ID
	Before  string         `json:"before,omitempty"` // the newest transaction when it began
	Group   int            `json:"group,omitempty"`  // the group whose canary is due, or whose restarts are under way
	Update  change.BackOff `json:"update"`
	Pre     bool           `json:"pre,omitempty"`    // the pre hook has run, and the post hook has not
	Worker  string         `json:"worker,omitempty"` // the unit in which the engine works
	Cause   string         `json:"cause,omitempty"`  // of a rollback
	Night   *change.Night  `json:"night"`
}

// badFile is a file of Dir that cannot be understood.
type badFile struct {
	file string
	err  error
}

func (b *badFile) Error() string { return fmt.Sprintf("cannot understand %s: %v", b.file, b.err) }

// readJSON reads a file of dir; found is false where there is none.
func readJSON(dir, name string, v any) (found bool, err error) {
	file := filepath.Join(dir, name)
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("cannot read the state of unattended runs: %w", err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return false, &badFile{file, err}
	}
	return true, nil
}

// setAside moves a file away that cannot be understood, which is no reason to stop the updates.
func setAside(err error) (warning string, _ error) {
	bad, ok := errors.AsType[*badFile](err)
	if !ok {
		return "", err
	}
	return fmt.Sprintf("%s cannot be understood (%v) and is %s.bad now", bad.file, bad.err, bad.file), os.Rename(bad.file, bad.file+".bad")
}

// LoadState reads what the last run left.
func LoadState(dir string) (*State, error) {
	s := &State{}
	if _, err := readJSON(dir, stateName, s); err != nil {
		return freshState(), err
	}
	if s.Version > version {
		return nil, fmt.Errorf("cannot read %s: version %d, this program knows %d", filepath.Join(dir, stateName), s.Version, version)
	}
	s.Version = version
	if s.Runs == nil {
		s.Runs = map[string]int64{}
	}
	return s, nil
}

func freshState() *State { return &State{Version: version, Runs: map[string]int64{}} }

// loadProgress reads how far a run had come that is under way, or was cut off; nil where there is none.
func loadProgress(dir string) (*Progress, error) {
	p := &Progress{}
	if found, err := readJSON(dir, runName, p); !found || err != nil || p.Night == nil || p.Version != version {
		return nil, err
	}
	return p, nil
}

// writeJSON replaces a file of dir durably.
func writeJSON(dir, name string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("cannot write the state of unattended runs: %w", err)
	}
	if err := replace(filepath.Join(dir, name), append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("cannot write the state of unattended runs: %w", err)
	}
	return nil
}

// replace puts content into a file that a reader, and a crash, finds whole: the old or the new.
func replace(file string, content []byte, mode fs.FileMode) error {
	dir := filepath.Dir(file)
	tmp := filepath.Join(dir, "."+filepath.Base(file)+".new")
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(tmp, file)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// remove removes a file of dir, where it is there.
func remove(dir, name string) error {
	if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot write the state of unattended runs: %w", err)
	}
	return nil
}

// CutOff tells whether a run is under way or was cut off.
func CutOff(dir string) bool {
	if dir == "" {
		dir = Dir
	}
	_, err := os.Lstat(filepath.Join(dir, runName))
	return err == nil
}

// Status is what is known of unattended runs.
func Status(dir string) (*change.NightStatus, error) {
	if dir == "" {
		dir = Dir
	}
	cfg, err := config.Load("/")
	if err != nil {
		return nil, err
	}
	out := &change.NightStatus{Enabled: cfg.Unattended.Enabled, BackOff: []change.BackOff{}}
	state, err := LoadState(dir)
	if err != nil {
		return nil, err
	}
	out.Last, out.Changed = state.Last, state.Changed
	out.BackOff = append(out.BackOff, rebase(state.BackOff, time.Now())...)
	if p, err := loadProgress(dir); err == nil && p != nil {
		out.Phase, out.Since = p.Phase, p.Night.Began
	}
	return out, nil
}
