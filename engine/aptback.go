package engine

import (
	"fmt"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/rootfs"
	"github.com/liveupd/liveupd/source/apt"
	"github.com/liveupd/liveupd/transact"
)

// refuseLaterDpkg refuses a rollback past a later run of dpkg: its database would tell
// of other packages than those that lie in the root. Only the newest of the targets
// that changed the database can be compared with it.
func (s *session) refuseLaterDpkg(targets []change.Generation) error {
	for _, g := range targets {
		tx, err := s.store.Load(g.ID)
		if err != nil {
			return err
		}
		packages, err := changesPackages(tx)
		if err != nil || !packages {
			tx.Close()
			if err != nil {
				return err
			}
			continue
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
	return nil
}

// lockPackages takes the package manager's locks where one of the targets has changed its
// database: whoever holds them is about to write to it.
func (s *session) lockPackages(targets []change.Generation) (*apt.Locks, error) {
	for _, g := range targets {
		tx, err := s.store.Load(g.ID)
		if err != nil {
			return nil, err
		}
		packages, err := changesPackages(tx)
		tx.Close()
		if err != nil {
			return nil, err
		}
		if packages {
			return apt.Lock(s.volumeOf, true)
		}
	}
	return nil, nil
}

// changesPackages tells whether a transaction has changed the database of dpkg.
func changesPackages(tx *transact.Tx) (bool, error) {
	d, content, err := tx.Inverse()
	if err != nil {
		return false, err
	}
	content.Close()
	return changesDpkg(d), nil
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
