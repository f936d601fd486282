package unattended

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/engine"
	"github.com/liveupd/liveupd/internal/config"
)

// inode is a file as proc_locks(5) writes it.
func inode(st fs.FileInfo) string {
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		major, minor := s.Dev>>8&0xfff|s.Dev>>32&^0xfff, s.Dev&0xff|s.Dev>>12&^0xff
		return fmt.Sprintf("%02x:%02x:%d", major, minor, s.Ino)
	}
	return ""
}

// lockFiles are those that an update needs: the engine's, and the package manager's.
var lockFiles = []string{
	"/run/liveupd/lock", "/var/lib/dpkg/lock-frontend", "/var/lib/dpkg/lock", "/var/lib/apt/lists/lock", "/var/cache/apt/archives/lock",
}

// PolicyAt tells what an unattended run would be allowed at a time, and why. units are those that
// run, to tell what a rule is about; nil where that is not known.
func PolicyAt(ctx context.Context, h Host, dir string, at time.Time, units []string) (*change.PolicyReport, error) {
	if dir == "" {
		dir = Dir
	}
	r := &run{h: h, o: Options{Dir: dir}, n: newNight(at)}
	var err error
	if r.cfg, err = config.Load("/"); err != nil {
		return nil, engine.Usage(err)
	}
	r.u = &r.cfg.Unattended
	if r.rules, err = config.LoadPolicy("/"); err != nil {
		return nil, engine.Usage(err)
	}
	out := &change.PolicyReport{
		MessageType: "report", Schema: engine.Schema, Verb: "policy", At: at.Unix(), Max: r.u.Most().String(),
		Rules: []change.RuleState{}, BackOff: []change.BackOff{}, Deferred: []change.Waiting{}, Warnings: []string{},
	}
	now := h.Now()
	present := at.Sub(now).Abs() < time.Minute
	out.Allowances = []change.Allowance{r.enabled(), windowsNow(r.cfg.Windows(), at)}
	if present {
		out.Allowances = append(out.Allowances, r.power(), r.network(ctx), locks())
	}
	state, err := LoadState(dir)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			err = errors.New("what has failed before is told to root only")
		}
		out.Warnings = append(out.Warnings, err.Error())
		state = freshState()
	}
	for _, b := range rebase(state.BackOff, now) {
		if waits(b, at) {
			out.BackOff = append(out.BackOff, b)
		}
	}
	list, err := h.Look(ctx, engine.Request{Verb: "status"})
	if err != nil {
		out.Warnings = append(out.Warnings, fmt.Sprintf("what is put off is not known: %v", err))
	}
	MarkUnderWay(list)
	out.Deferred = engine.Waiting(list)
	out.Allowances = append(out.Allowances, unfinished(list), r.rebootAt(list, at))
	out.Allowed = !slices.ContainsFunc(out.Allowances, func(a change.Allowance) bool { return !a.Allows && a.What != whatReboot })
	for _, rule := range append(slices.Clone(r.rules), r.request("apply").Rules...) {
		out.Rules = append(out.Rules, r.ruleState(rule, at, units))
	}
	return out, nil
}

const (
	whatLocks      = "locks"
	whatUnfinished = "unfinished"
	whatReboot     = "reboot"
)

func locks() change.Allowance {
	a := change.Allowance{What: whatLocks, Allows: true, Detail: "no other transaction and no package manager is at work"}
	for _, file := range lockFiles {
		pid := Holder(file)
		if pid == 0 {
			continue
		}
		who := "a process"
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil {
			who = fmt.Sprintf("%s (process %d)", strings.TrimSpace(string(b)), pid)
		}
		a.Allows, a.Detail = false, who+" holds "+file
		break
	}
	return a
}

// MarkUnderWay tells those transactions of this machine that somebody is at work on from those
// that were cut off.
func MarkUnderWay(list []change.Generation) {
	markUnderWay(list, Holder(lockFiles[0]) != 0)
}

func markUnderWay(list []change.Generation, held bool) {
	for i := range list {
		list[i].UnderWay = held && list[i].Unfinished()
	}
}

func unfinished(list []change.Generation) change.Allowance {
	a := change.Allowance{What: whatUnfinished, Allows: true, Detail: "no transaction was cut off"}
	for _, g := range list {
		if g.UnderWay {
			a.Detail = fmt.Sprintf("transaction %s is under way (%s)", g.ID, g.State)
		} else if g.Unfinished() {
			a.Detail = fmt.Sprintf("transaction %s was cut off (%s): a run recovers it first", g.ID, g.State)
		}
	}
	return a
}

// rebootAt tells whether a reboot would come.
func (r *run) rebootAt(list []change.Generation, at time.Time) change.Allowance {
	a := change.Allowance{What: whatReboot, Allows: true}
	setting := r.u.Reboot
	if setting == "" {
		setting = "never"
	}
	a.Detail = fmt.Sprintf("unattended.reboot is %q", setting)
	switch setting {
	case "never":
		a.Allows = false
	case "window":
		a.Allows = Open(r.cfg.Windows(), at)
	}
	if action := pending(list); action > change.ActionNone {
		a.Detail += fmt.Sprintf("; a %s is pending", action)
	} else {
		a.Detail += "; none is pending"
	}
	return a
}

// ruleState is a rule as it stands at a time.
func (r *run) ruleState(rule change.Rule, at time.Time, units []string) change.RuleState {
	s := change.RuleState{
		Source: rule.Source, Units: rule.Units, Paths: rule.Paths, Packages: rule.Packages, Action: rule.Action, Reason: rule.Reason,
		Open: Open(rule.Windows, at),
	}
	for _, w := range rule.Windows {
		s.Windows = append(s.Windows, w.String())
	}
	if next := Changes(rule.Windows, at); !next.IsZero() {
		s.Changes = next.Unix()
	}
	for _, u := range units {
		if matches(rule.Units, u) {
			s.Running = append(s.Running, u)
		}
	}
	slices.Sort(s.Running)
	if !meet(rule.Windows, r.cfg.Windows()) {
		s.Never = "its windows and unattended.windows have no minute in common"
	}
	return s
}
