package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/config"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/rootfs"
)

// loadRules reads the administrator's rules for the verbs that interrupt. A
// recovery must not fail for a mistake in them.
func loadRules(req Request) ([]change.Rule, error) {
	switch req.Verb {
	case "recover", "clean", "status", "history", "setup", "key":
		return nil, nil
	case "verify":
		if !req.Repair {
			return nil, nil
		}
	}
	rules, err := config.LoadPolicy(req.Root)
	if err != nil {
		return nil, Usage(err)
	}
	return rules, nil
}

// govern puts the rules into a policy. The windows are the running machine's:
// a tree that none runs has no hour.
func (s *session) govern(policy *change.Policy) {
	policy.Rules = s.rules
	if s.req.Live() {
		now := time.Now()
		policy.Now = &change.WeekTime{Day: int(now.Weekday()), Minute: now.Hour()*60 + now.Minute()}
	}
}

// packagesForRules finds who owns what changes, where a rule asks for it.
func (s *session) packagesForRules(in *change.Input, content *sys.FD) error {
	if !slices.ContainsFunc(s.rules, func(r change.Rule) bool { return len(r.Packages) > 0 }) || in.Delta.Empty() {
		return nil
	}
	var paths []string
	for i := range in.Delta.Entries {
		paths = append(paths, in.Delta.Entries[i].Path)
	}
	old := rootfs.Volumes(s.rootVolumes()...)
	if other := rootfs.Packages(old).Other(); other != "" {
		in.New.Warnings = append(in.New.Warnings, fmt.Sprintf("the policy names packages, and the database of %s is not read: those rules apply to nothing", other))
	}
	in.Packages = map[string][]string{}
	for _, view := range []rootfs.View{old, rootfs.Overlay(old, in.Delta, content)} {
		owners, err := rootfs.Packages(view).Owners(paths...)
		if err != nil {
			return fmt.Errorf("cannot tell whose the changed paths are, as the policy asks: %w", err)
		}
		for p, names := range owners {
			in.Packages[p] = append(in.Packages[p], names...)
		}
	}
	return nil
}

// waiting is what earlier updates put off and what still has to be done, with
// the reasons of the plan that put it off where that is still kept.
func (s *session) waiting() ([]change.UnitPlan, error) {
	list, err := s.store.List()
	if err != nil {
		return nil, err
	}
	s.forgetDone(list)
	found := map[string]change.UnitPlan{}
	for _, g := range list {
		if len(g.Deferred) == 0 {
			continue
		}
		plan, err := s.planOf(g.ID)
		if err != nil {
			return nil, err
		}
		for _, name := range g.Deferred {
			u := change.UnitPlan{Unit: name}
			if i := slices.IndexFunc(plan.Units, func(u change.UnitPlan) bool { return u.Unit == name }); i >= 0 {
				u = plan.Units[i]
			}
			if len(found[name].Reasons) == 0 {
				found[name] = u
			}
		}
	}
	var out []change.UnitPlan
	for _, name := range slices.Sorted(maps.Keys(found)) {
		u := found[name]
		if len(u.Reasons) == 0 {
			u.Reasons = []change.Reason{{Kind: "deferred", Unit: name}}
		}
		out = append(out, u)
	}
	return out, nil
}

// planOf reads the plan of a transaction; an empty one where it is no longer kept.
func (s *session) planOf(id string) (*change.Plan, error) {
	tx, err := s.store.Load(id)
	if errors.Is(err, fs.ErrNotExist) {
		return &change.Plan{}, nil
	}
	if err != nil {
		return nil, err
	}
	defer tx.Close()
	plan, err := tx.Plan()
	if err != nil || plan == nil {
		return &change.Plan{}, err
	}
	return plan, nil
}

// carryOver adds what earlier updates left to be done, and what this one did
// not do either: their records go when they are collected.
func (s *session) carryOver(id string, host change.Action, deferred []string) (change.Action, []string) {
	list, err := s.store.List()
	if err != nil {
		s.warnings = append(s.warnings, fmt.Sprintf("what earlier updates left to be done is not known: %v", err))
		return host, deferred
	}
	s.forgetDone(list)
	for _, g := range list {
		if g.ID == id {
			continue
		}
		if g.HostAction >= change.ActionSoftReboot {
			host = max(host, g.HostAction)
		}
		deferred = append(deferred, g.Deferred...)
	}
	slices.Sort(deferred)
	return host, slices.Compact(deferred)
}
