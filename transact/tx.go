package transact

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/journal"
	"github.com/liveupd/liveupd/internal/sys"
)

// Header is what a transaction is, for the journal and the list.
type Header struct {
	Source     string
	Name       string
	Version    string // the update's
	Sequence   uint64
	PlanID     string
	Manifest   string // digest of the manifest that the update was checked by, "" for none
	HostAction change.Action
	Time       int64 // seconds since the epoch; 0: now
	// Reserve is how many bytes the caller will write to the root's file system beside
	// the transaction: they must be free, too.
	Reserve int64
}

// Tx is one transaction.
type Tx struct {
	s        *Store
	header   journal.Header
	status   journal.Status
	vols     []txVolume // as the journal numbers them
	stage    *staging   // between Stage and Prepare
	journal  *journal.Journal
	file     *sys.RegularFile // the journal's, where it was read; it stays open for its operations
	warnings []string
	around   func() (after func())
	takes    bool         // TakeSource
	reserved int64        // Header.Reserve
	keptRead bool         // CheckKept has read all that is kept
	onSwap   func() error // see OnSwap
}

// txVolume is a transaction's part on one volume.
type txVolume struct {
	mount string
	vol   *volume // nil: not among the volumes that the store was opened with
	dir   *sys.FD // tx/ID there; nil where the transaction has none
	// overlay: the file system is one, as a container's root; set by probe.
	overlay bool
	// tick is the step in which it counts modification times, in nanoseconds; set by probe.
	tick int64
}

// idTime sorts as text. Microseconds: two transactions of one second keep their order.
const idTime = "20060102-150405.000000"

// Begin starts a transaction in the state staging. Another one that is not
// finished refuses it.
func (s *Store) Begin(h Header) (*Tx, error) {
	if s.readOnly {
		return nil, errors.New("cannot begin a transaction: the store is open for reading")
	}
	root := s.vols[0]
	ids, _, err := root.ids()
	if err != nil {
		return nil, err
	}
	now := time.Now().UTC()
	stamp := now.Format(idTime)
	for _, id := range ids {
		st, err := s.status(id)
		if err != nil {
			return nil, err
		}
		switch st.State {
		case journal.Staging, journal.Verified, journal.RolledBack:
		default:
			return nil, change.WithHint(fmt.Errorf("cannot begin a transaction: %s is unfinished (%s)", id, st.State), "run liveupd recover")
		}
		// A clock that went back must not make the newest generation an old one.
		if last, err := time.Parse(idTime, id[:min(len(id), len(idTime))]); err == nil && stamp <= id[:len(idTime)] {
			stamp = last.Add(time.Microsecond).Format(idTime)
		}
	}
	var random [4]byte
	_, _ = rand.Read(random[:]) // never fails, by its documentation
	t := &Tx{s: s, reserved: h.Reserve, header: journal.Header{
		ID: stamp + "-" + hex.EncodeToString(random[:]), Time: h.Time, Source: h.Source, Name: h.Name, Release: h.Version,
		Sequence: h.Sequence, PlanID: h.PlanID, Manifest: h.Manifest, HostAction: h.HostAction, BootID: bootID(),
	}}
	if t.header.Time == 0 {
		t.header.Time = now.Unix()
	}
	for _, v := range s.vols {
		t.vols = append(t.vols, txVolume{mount: v.Mount, vol: v})
	}
	if err := t.makeDir(0); err != nil {
		return nil, t.nameFull(err)
	}
	if err := t.setState(journal.Staging); err != nil {
		return nil, t.nameFull(err)
	}
	return t, nil
}

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "" // no /proc yet, as in some initrds: nothing can be compared
	}
	return strings.TrimSpace(string(b))
}

// ID names the transaction; IDs sort by time.
func (t *Tx) ID() string { return t.header.ID }

// State is how far it has come.
func (t *Tx) State() journal.State { return t.status.State }

// Warnings are what a person should know: versions of others that were kept
// beside, metadata that could not be taken back.
func (t *Tx) Warnings() []string { return t.warnings }

// OnSwap has Commit call f when all names have moved, before that is final: an error
// of f takes everything back.
func (t *Tx) OnSwap(f func() error) { t.onSwap = f }

// SameBoot tells whether the transaction began in the boot that runs now.
func (t *Tx) SameBoot() bool { return t.header.BootID != "" && t.header.BootID == bootID() }

// TakeSource lets Stage take the source's files where it would copy them: the
// source is ours and is used up, whatever becomes of the transaction. Files on other
// file systems, and those with further names, are copied all the same.
func (t *Tx) TakeSource() { t.takes = true }

// Around has begin called right before names move, by Commit or Revert, and what it
// returns right after, whatever came of it.
func (t *Tx) Around(begin func() (after func())) { t.around = begin }

// moving tells who asked by Around that names begin to move.
func (t *Tx) moving() (after func()) {
	if t.around == nil {
		return func() {}
	}
	return t.around()
}

// Close lets go of the descriptors; the transaction stays as it is.
func (t *Tx) Close() {
	if t.file != nil {
		t.file.Close()
		t.file = nil
	}
	for i := range t.vols {
		t.vols[i].dir.Close()
		t.vols[i].dir = nil
	}
}

// makeDir makes tx/ID with up, del and work on one volume.
func (t *Tx) makeDir(vol int) error {
	tv := &t.vols[vol]
	if tv.dir != nil {
		return nil
	}
	k := t.s.k
	if err := t.s.makeHome(tv.vol); err != nil {
		return err
	}
	fail := func(err error) error {
		return fmt.Errorf("cannot make %s/tx/%s: %w", tv.vol.homePath(), t.ID(), err)
	}
	if err := k.Mkdir(tv.vol.tx, t.ID(), 0o700); err != nil {
		return fail(err)
	}
	dir, err := sys.OpenAt(tv.vol.tx, t.ID(), sys.OpenRead|sys.OpenDir|sys.OpenNoLink, resolve)
	if err != nil {
		return fail(err)
	}
	tv.dir = dir
	if vol != 0 {
		token, err := t.s.token()
		if err != nil {
			return fail(err)
		}
		if err := t.s.writeFile(dir, ownerName, []byte(token)); err != nil {
			return fail(err)
		}
	}
	for _, name := range []string{upName, delName, workName} {
		if err := k.Mkdir(dir, name, 0o700); err != nil {
			return fail(err)
		}
	}
	if err := k.Fsync(dir); err != nil {
		return fail(err)
	}
	return k.Fsync(tv.vol.tx)
}

// SetState moves the transaction on, durably: to boot and restarting after the commit.
func (t *Tx) SetState(s journal.State) error { return t.setState(s) }

func (t *Tx) setState(s journal.State) error {
	st := t.status
	if st.State != s {
		st.Attempts = 0
	}
	if st.State == "" {
		st.HostAction = t.header.HostAction
	}
	if s == journal.RolledBack && st.State != s {
		// What the update left to be done went with it; the rollback records its own.
		st.HostAction, st.CarriedHost, st.Deferred, st.Waiting, st.PendingBoot = change.ActionNone, change.ActionNone, nil, nil, ""
	}
	st.State, st.Time = s, time.Now().Unix()
	return t.writeStatus(st)
}

// SetPending records what a boot or a person still has to do, for status; carried
// is what of it an earlier update had left.
func (t *Tx) SetPending(host, carried change.Action, waiting []change.Waiting) error {
	st := t.status
	st.HostAction, st.CarriedHost, st.Deferred, st.Waiting, st.PendingBoot = host, carried, nil, waiting, bootID()
	for _, w := range waiting {
		st.Deferred = append(st.Deferred, w.Key())
	}
	return t.writeStatus(st)
}

func (t *Tx) writeStatus(st journal.Status) error {
	err := journal.WriteStatus(t.s.k, t.vols[0].dir, st)
	if t.makeRoom(0, err) {
		err = journal.WriteStatus(t.s.k, t.vols[0].dir, st)
	}
	if err != nil {
		return t.nameFull(fmt.Errorf("transaction %s: %w", t.ID(), err))
	}
	t.status = st
	return nil
}

// RecordStep records a unit or host step durably: before it is done with Result
// "begun", and after it with what came of it.
func (t *Tx) RecordStep(r change.StepResult) error {
	err := journal.AppendStep(t.s.k, t.vols[0].dir, r)
	if t.makeRoom(0, err) {
		err = journal.AppendStep(t.s.k, t.vols[0].dir, r)
	}
	return err
}

// Steps are the recorded steps, in order.
func (t *Tx) Steps() ([]change.StepResult, error) { return journal.ReadSteps(t.vols[0].dir) }

// Discard removes a transaction that has not reached its commit point, or was
// rolled back.
func (t *Tx) Discard() error {
	switch t.status.State {
	case journal.Staging, journal.RolledBack:
	default:
		return fmt.Errorf("cannot discard transaction %s: it is %s", t.ID(), t.status.State)
	}
	t.Close()
	return t.s.remove(t.ID())
}

// Load opens a transaction of the store by its ID.
func (s *Store) Load(id string) (*Tx, error) {
	t, err := s.load(id)
	if err != nil {
		return nil, err
	}
	if err := t.readJournal(); err != nil && !(t.status.State == journal.Staging && errors.Is(err, fs.ErrNotExist)) {
		t.Close()
		return nil, err
	}
	return t, nil
}

// load opens a transaction without its journal.
func (s *Store) load(id string) (*Tx, error) {
	if id == "" || strings.ContainsAny(id, "/\x00") || strings.HasPrefix(id, ".") || strings.HasPrefix(id, gcPrefix) {
		return nil, fmt.Errorf("cannot load transaction %q: it is no transaction's name", id)
	}
	if s.vols[0].tx == nil {
		return nil, fmt.Errorf("cannot load transaction %s: %w", id, fs.ErrNotExist)
	}
	dir, err := sys.OpenAt(s.vols[0].tx, id, sys.OpenRead|sys.OpenDir|sys.OpenNoLink, resolve)
	if err != nil {
		return nil, fmt.Errorf("cannot load transaction %s: %w", id, err)
	}
	t := &Tx{s: s, header: journal.Header{ID: id}, vols: []txVolume{{mount: "/", vol: s.vols[0], dir: dir}}}
	if t.status, err = journal.ReadStatus(dir); err != nil {
		t.Close()
		return nil, fmt.Errorf("cannot load transaction %s: %w", id, err)
	}
	return t, nil
}

// readJournal reads the journal and finds its volumes among the store's.
func (t *Tx) readJournal() error {
	f, err := sys.OpenRegular(t.vols[0].dir, journal.FileName, resolve)
	if err != nil {
		return fmt.Errorf("cannot load transaction %s: %w", t.ID(), err)
	}
	j, err := journal.Read(f, f.Size(), "the journal of transaction "+t.ID())
	if err != nil {
		f.Close()
		return err
	}
	t.file = f // Close closes it
	if j.Header.ID != t.ID() {
		return fmt.Errorf("cannot load transaction %s: its journal is that of %s: %w", t.ID(), j.Header.ID, journal.ErrCorrupt)
	}
	if len(j.Volumes) == 0 || j.Volumes[0].Mount != "/" {
		return fmt.Errorf("cannot load transaction %s: its journal names no root: %w", t.ID(), journal.ErrCorrupt)
	}
	t.header, t.journal = j.Header, j
	for i, jv := range j.Volumes {
		if i == 0 {
			continue
		}
		tv := txVolume{mount: string(jv.Mount)}
		for _, v := range t.s.vols[1:] {
			if v.Mount != tv.mount || (v.ID != "" && jv.ID != "" && v.ID != jv.ID) || v.tx == nil {
				continue
			}
			// Its own folder there is the proof: the transaction's name is random.
			dir, err := sys.OpenAt(v.tx, t.ID(), sys.OpenRead|sys.OpenDir|sys.OpenNoLink, resolve)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return fmt.Errorf("cannot load transaction %s: volume %s: %w", t.ID(), tv.mount, err)
			}
			tv.vol, tv.dir = v, dir
		}
		t.vols = append(t.vols, tv)
	}
	return nil
}

// Mounts lists those of the volumes that the journal changes.
func (t *Tx) Mounts() []string {
	var out []string
	for i, tv := range t.vols {
		if t.journal.Ops.Uses(i) {
			out = append(out, tv.mount)
		}
	}
	return out
}

// missing lists the mounts of volumes that the journal changes and the store lacks.
func (t *Tx) missing() []string {
	var out []string
	for i, tv := range t.vols {
		if t.journal.Ops.Uses(i) && tv.dir == nil {
			out = append(out, tv.mount)
		}
	}
	return out
}

// Plan is the plan that the transaction was made for; nil where it has none.
func (t *Tx) Plan() (*change.Plan, error) {
	if t.journal == nil {
		return nil, fmt.Errorf("cannot read the plan of transaction %s: it has no journal yet", t.ID())
	}
	return t.journal.Plan()
}

// status reads the state of a transaction by its ID; one without a state file
// has only begun.
func (s *Store) status(id string) (journal.Status, error) {
	dir, err := sys.OpenAt(s.vols[0].tx, id, sys.OpenRead|sys.OpenDir|sys.OpenNoLink, resolve)
	if err != nil {
		return journal.Status{}, fmt.Errorf("cannot read the state of transaction %s: %w", id, err)
	}
	defer dir.Close()
	st, err := journal.ReadStatus(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return journal.Status{State: journal.Staging}, nil
	}
	if err != nil {
		return st, fmt.Errorf("transaction %s: %w", id, err)
	}
	return st, nil
}

// remove takes a transaction away on all volumes: first its name on the root,
// which decides, so that a crash leaves garbage and never half a transaction.
func (s *Store) remove(id string) error {
	if err := s.removeSnapshot(id); err != nil {
		return err
	}
	for _, v := range s.vols {
		if v.tx == nil {
			continue
		}
		if _, err := sys.Lstat(v.tx, id); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		fail := func(err error) error { return fmt.Errorf("cannot remove %s/tx/%s: %w", v.homePath(), id, err) }
		// Without a flag, which a file system that was refused may not know.
		err := s.k.Rename(v.tx, id, v.tx, gcPrefix+id, 0)
		if s.makeRoomOf(v, id, err) {
			err = s.k.Rename(v.tx, id, v.tx, gcPrefix+id, 0)
		}
		if err != nil {
			return fail(err)
		}
		if err := s.k.Fsync(v.tx); err != nil {
			return fail(err)
		}
	}
	return s.removeGarbage()
}

// removeGarbage finishes removals.
func (s *Store) removeGarbage() error {
	for _, v := range s.vols {
		_, garbage, err := v.ids()
		if err != nil {
			return err
		}
		for _, name := range garbage {
			if err := s.k.RemoveAll(v.tx, name); err != nil {
				return fmt.Errorf("cannot remove %s/tx/%s: %w", v.homePath(), name, err)
			}
		}
	}
	return nil
}
