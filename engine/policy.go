package engine

import (
	"fmt"
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
	return append(rules, req.Rules...), nil
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
