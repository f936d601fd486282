package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/journal"
	"github.com/liveupd/liveupd/rootfs"
	"github.com/liveupd/liveupd/source/apt"
)

// newestOfPackages is the newest of the targets of a rollback that has changed the package
// manager's database; nil where none has.
func (s *session) newestOfPackages(targets []change.Generation) (*change.Generation, error) {
	for i := range targets {
		tx, err := s.store.Load(targets[i].ID)
		if err != nil {
			return nil, err
		}
		changes, err := tx.Changes(apt.StatusPath)
		tx.Close()
		if err != nil {
			return nil, err
		}
		if changes {
			return &targets[i], nil
		}
	}
	return nil, nil
}

// refuseLaterDpkg refuses a rollback past a later run of dpkg: its database would tell
// of other packages than those that lie in the root. Only the newest of the targets
// that changed the database can be compared with it.
func (s *session) refuseLaterDpkg(g *change.Generation) error {
	tx, err := s.store.Load(g.ID)
	if err != nil {
		return err
	}
	edited, err := tx.Edited()
	plan, perr := tx.Plan()
	tx.Close()
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(edited, func(text string) bool { return strings.HasPrefix(text, apt.StatusPath+" was ") }) {
		return nil
	}
	since := ""
	if perr == nil && plan != nil {
		since = s.packagesSince(plan.Packages)
	}
	return change.WithHint(fmt.Errorf("cannot roll back %s: dpkg has run since%s; %w", g.ID, since, ErrNothingCommitted),
		"use apt to go back to older packages, or liveupd exec to try it first")
}

// lockWait is how long a recovery that nobody waits for lets the package manager finish.
const lockWait = 10 * time.Minute

// lockHalfDone takes the package manager's locks where a killed run left its database half
// exchanged: a package manager that was started since then writes to it. A transaction that
// cannot be read is the recovery's to complain of.
func (s *session) lockHalfDone(ctx context.Context, g change.Generation, ev Events) (*apt.Locks, error) {
	if state := journal.State(g.State); state != journal.Committing && state != journal.RollingBack {
		return nil, nil
	}
	tx, err := s.store.Load(g.ID)
	if err != nil {
		return nil, nil
	}
	changes, err := tx.Changes(apt.StatusPath)
	tx.Close()
	if err != nil || !changes {
		return nil, nil
	}
	began := time.Now()
	for told := false; ; told = true {
		locks, err := apt.Lock(s.volumeOf, true)
		if err == nil || !errors.Is(err, change.ErrLocked) {
			// Without a place for locks there is no package manager to wait for.
			return locks, nil
		}
		if !s.req.IfUnfinished || time.Since(began) > lockWait {
			return nil, fmt.Errorf("transaction %s was cut off and cannot be recovered now: %w", g.ID, err)
		}
		if !told {
			ev.progress("waiting", 0, 0, "", err.Error())
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// changesDpkg tells whether a Delta brings another database of dpkg.
func changesDpkg(d *change.Delta) bool {
	return slices.ContainsFunc(d.Entries, func(e change.Entry) bool { return e.Path == apt.StatusPath })
}

// packagesSince names those packages of an update that have another version by now.
func (s *session) packagesSince(packages []change.Package) string {
	status, err := rootfs.Volumes(s.rootVolumes()...).ReadFile(apt.StatusPath)
	if err != nil {
		return ""
	}
	now := apt.Installed(status)
	var names []string
	for _, p := range packages {
		if now[p.Name+":"+p.Arch].To != p.To {
			is := now[p.Name+":"+p.Arch].To
			if is == "" {
				is = "gone"
			}
			names = append(names, fmt.Sprintf("%s is %s", p.Name, is))
		}
	}
	if len(names) == 0 {
		return ", on other packages than this update's"
	}
	if more := len(names) - 3; more > 0 {
		names = append(names[:3], fmt.Sprintf("and %d more", more))
	}
	return ": " + strings.Join(names, ", ")
}

// runAgain adds to the plan of a rollback the programs of the host that the update had
// run: boot entries are made of the old files again.
func runAgain(p *change.Plan, before []change.Step) {
	at := slices.IndexFunc(p.Steps, func(st change.Step) bool { return st.Do == "verify" })
	if at < 0 {
		at = len(p.Steps)
	}
	for _, st := range before {
		if st.Do == runStep {
			p.Steps = slices.Insert(p.Steps, at, st)
			at++
		}
	}
	for i := range p.Steps {
		p.Steps[i].Seq = i + 1
	}
}
