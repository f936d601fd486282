package unattended

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/engine"
)

// finish is the end of each run: what is put off and pending, the hooks, the state, and whoever
// is to know.
func (r *run) finish(ctx context.Context, again time.Time) error {
	ctx = context.WithoutCancel(ctx)
	n := r.n
	list, err := r.h.Look(ctx, engine.Request{Verb: "status", Unattended: true})
	if err != nil {
		r.warn(fmt.Sprintf("what is put off is not known: %v", err))
	}
	n.Deferred = engine.Waiting(list)
	n.HostAction = pending(list)
	r.state.BackOff = tidyBackOff(r.state.BackOff, r.h.Now())
	n.BackOff = append([]change.BackOff{}, r.state.BackOff...)
	n.Code = r.code()
	r.tell(ctx)
	n.Ended = r.h.Now().Unix()
	r.state.Last = n
	if n.Result == change.NightDone || n.Result == change.NightRolledBack {
		r.state.Changed = n
	}
	if n.Result != change.NightSkipped {
		r.state.Looked = n
	}
	r.state.Runs[n.Result]++
	if m, ok := resultMessages[n.Result]; ok {
		r.log(m.id, Sentence(n), nil)
	}
	for _, w := range n.Deferred {
		r.log(MessageDeferred, fmt.Sprintf("%s still runs the old state, since %s: %s", w.Key(), time.Unix(w.Since, 0).Format("2006-01-02"), w.Why()),
			map[string]string{"LIVEUPD_UNIT": w.Key(), "LIVEUPD_SINCE": fmt.Sprint(w.Since), "LIVEUPD_WHY": w.Why()})
	}
	err = writeJSON(r.o.Dir, stateName, r.state)
	switch {
	case !again.IsZero():
		r.log(MessageWaiting, "unattended run waits until "+again.Format("2006-01-02 15:04"), map[string]string{"LIVEUPD_UNTIL": fmt.Sprint(again.Unix())})
		err = errors.Join(err, writeJSON(r.o.Dir, runName, &Progress{Version: version, Phase: phaseWaiting, Boot: r.h.Boot(), Night: newNight(r.h.Now())}))
	case n.Reboot > 0:
		err = errors.Join(err, r.phase(phaseReboot))
	default:
		err = errors.Join(err, remove(r.o.Dir, runName))
	}
	if e := publish(r.h, r.o.Dir, r.u, r.state, list); e != nil {
		// Who is told less than he wants is no failure of the update.
		r.warn(e.Error())
		err = errors.Join(err, writeJSON(r.o.Dir, stateName, r.state))
	}
	if n.Reboot == 0 {
		return err
	}
	// The last of all: from here on the machine may go down.
	message := fmt.Sprintf("liveupd reboots this machine at %s: an update needs it", time.Unix(n.Reboot, 0).Format("15:04"))
	r.log(MessageReboot, message, map[string]string{"LIVEUPD_AT": fmt.Sprint(n.Reboot)})
	if e := r.h.Reboot(ctx, time.Unix(n.Reboot, 0), message); e != nil {
		n.Reboot = 0
		r.warn(e.Error())
		err = errors.Join(err, remove(r.o.Dir, runName), writeJSON(r.o.Dir, stateName, r.state))
	}
	return err
}

// pending is the boot that updates need, of what kind; none where they need none.
func pending(list []change.Generation) change.Action {
	out := change.ActionNone
	for _, g := range list {
		if g.HostAction > change.ActionDaemonReexec {
			out = max(out, g.HostAction)
		}
	}
	return out
}

// code is the exit status that the run's result comes to.
func (r *run) code() int {
	n := r.n
	var err error
	switch n.Result {
	case change.NightFailed:
		err = errors.New(n.Error)
	case change.NightSkipped:
		if n.Error == "" {
			return 0
		}
		err = change.ErrLocked
	case change.NightRolledBack:
		err = engine.ErrRolledBack
	case change.NightPerson:
		err = change.ErrNeedsPerson
	}
	if err != nil {
		if r.o.Code == nil {
			return 1
		}
		return r.o.Code(err)
	}
	if n.HostAction > change.ActionDaemonReexec && n.ID != "" {
		return pendingCode
	}
	return 0
}

// pendingCode is the exit status of what is done and waits for a boot.
const pendingCode = 4

// reboot decides whether the reboot that is pending is to come, and when; finish asks for it.
func (r *run) reboot(ctx context.Context) {
	list, err := r.h.Look(ctx, engine.Request{Verb: "status", Unattended: true})
	if err != nil {
		return // finish tells it
	}
	action := pending(list)
	if action == change.ActionNone {
		return
	}
	now := r.h.Now()
	at := now
	users, err := r.h.Users(ctx)
	if err != nil || len(users) > 0 {
		// Where nobody can tell, somebody may be there.
		at = now.Add(r.u.RebootDelay.Or(defaultWarning))
	}
	switch r.u.Reboot {
	case "auto":
	case "window":
		if !Open(r.cfg.Windows(), at) || !Open(r.cfg.Windows(), now) {
			r.warn(fmt.Sprintf("a %s is pending, and does not fit into the window any more", action))
			return
		}
	default:
		return
	}
	r.n.Reboot = at.Unix()
	r.n.HostAction = action
}
