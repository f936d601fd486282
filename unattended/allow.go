package unattended

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/engine"
)

// What an allowance is about.
const (
	whatEnabled = "enabled"
	whatWindows = "windows"
	whatPower   = "power"
	whatNetwork = "network"
)

// allowances tells of each condition whether it lets a run go on now.
func (r *run) allowances(ctx context.Context) []change.Allowance {
	return []change.Allowance{r.enabled(), windowsNow(r.cfg.Windows(), r.h.Now()), r.power(), r.network(ctx)}
}

func (r *run) enabled() change.Allowance {
	a := change.Allowance{What: whatEnabled, Allows: r.u.Enabled, Detail: "unattended runs are enabled"}
	if !a.Allows {
		a.Detail = "unattended runs are not enabled: say unattended.enabled = true in /etc/liveupd/liveupd.toml"
	}
	return a
}

func windowsNow(windows []change.Window, now time.Time) change.Allowance {
	a := change.Allowance{What: whatWindows, Allows: Open(windows, now), Detail: "no windows are given: at any time"}
	if len(windows) == 0 {
		return a
	}
	next := Changes(windows, now)
	text := "the window is closed"
	if a.Allows {
		text = "the window is open"
	}
	a.Detail = text + " (" + windowTexts(windows) + ")"
	if next.IsZero() {
		return a
	}
	a.Changes = next.Unix()
	verb := "opens"
	if a.Allows {
		verb = "closes"
	}
	a.Detail += ", and " + verb + " " + next.Format("Mon 2006-01-02 15:04")
	return a
}

func windowTexts(windows []change.Window) string {
	var out []string
	for _, w := range windows {
		out = append(out, w.String())
	}
	return strings.Join(out, ", ")
}

func (r *run) power() change.Allowance {
	battery, detail := r.h.OnBattery()
	a := change.Allowance{What: whatPower, Allows: !battery || r.u.OnBattery, Detail: detail}
	if battery && r.u.OnBattery {
		a.Detail += ", which unattended.on_battery permits"
	}
	return a
}

// network says no where what is downloaded costs; a source of this machine needs no network.
func (r *run) network(ctx context.Context) change.Allowance {
	a := change.Allowance{What: whatNetwork, Allows: true}
	kind, where, _ := strings.Cut(r.cfg.Source, ":")
	if kind != "" && kind != "apt" && !strings.Contains(where, "://") {
		a.Detail = "the source " + r.cfg.Source + " needs no network"
		return a
	}
	metered := r.u.Metered == "yes"
	switch r.u.Metered {
	case "yes", "no":
		a.Detail = "unattended.metered says " + r.u.Metered
	default:
		metered, a.Detail = r.h.Metered(ctx)
	}
	if metered && !r.u.OnMetered {
		a.Allows = false
		a.Detail = "the network is metered: " + a.Detail
	} else if metered {
		a.Detail = "the network is metered, which unattended.on_metered permits: " + a.Detail
	}
	return a
}

// dryRun decides and plans, and changes nothing.
func (r *run) dryRun(ctx context.Context) (*change.Night, error) {
	r.n.DryRun = true
	var err error
	if r.state, err = LoadState(r.o.Dir); err != nil {
		return nil, err
	}
	r.state.BackOff = rebase(r.state.BackOff, r.h.Now())
	list, err := r.h.Look(ctx, engine.Request{Verb: "status", Unattended: true})
	if err != nil {
		return nil, err
	}
	r.n.Deferred, r.n.BackOff = engine.Waiting(list), append([]change.BackOff{}, r.state.BackOff...)
	r.n.HostAction = pending(list)
	var held []string
	var failed []change.BackOff
	for {
		req := r.applyRequest(held)
		req.Verb = "plan"
		result, err := r.h.Do(ctx, req, engine.Events{Emit: r.emit})
		if err != nil {
			return nil, err
		}
		plan, ok := result.(*change.Plan)
		if !ok {
			return nil, fmt.Errorf("the engine has made no plan")
		}
		if !r.o.Retry && !plan.Empty() {
			if b := backedOff(r.state.BackOff, identify(plan), r.h.Now()); b != nil {
				more := further(b, held)
				failed, held = append(failed, *b), append(held, more...)
				if r.n.Held = held; len(more) > 0 {
					continue
				}
			}
		}
		r.emit(plan)
		r.n.PlanID, r.n.Source, r.n.Name, r.n.Version, r.n.Packages, r.n.Changes = plan.ID, plan.Source, plan.Name, plan.Version, plan.Packages, plan.Changes
		r.n.Result = change.NightDone
		if plan.Empty() {
			r.n.Result = change.NightNothing
		}
		for _, u := range plan.Units {
			if u.Action != change.ActionDefer {
				r.n.Units = append(r.n.Units, u.Unit)
			}
		}
		break
	}
	slices.Sort(r.n.Units)
	if len(failed) > 0 {
		r.n.Result, r.n.Reason = change.NightBackedOff, backOffTexts(failed)
	}
	for _, a := range r.allowances(ctx) {
		if !a.Allows {
			r.n.Result, r.n.Reason = change.NightSkipped, a.Detail
			break
		}
	}
	r.n.Ended = r.h.Now().Unix()
	return r.n, nil
}
