package systemd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/godbus/dbus/v5"
)

// JobKind is what a job does to a unit.
type JobKind string

// The kinds of jobs, by the manager's methods that enqueue them.
const (
	JobStart   JobKind = "StartUnit"
	JobStop    JobKind = "StopUnit"
	JobRestart JobKind = "RestartUnit"
	// JobTryRestart leaves a unit that does not run alone.
	JobTryRestart JobKind = "TryRestartUnit"
	// JobReload fails for a unit that cannot reload or does not run.
	JobReload JobKind = "ReloadUnit"
	// JobReloadOrTryRestart reloads what can, restarts what cannot, and
	// leaves a unit that does not run alone.
	JobReloadOrTryRestart JobKind = "ReloadOrTryRestartUnit"
)

// Job is one order for a unit.
type Job struct {
	Kind JobKind
	Unit string
}

// JobEnd is what came of a job.
type JobEnd struct {
	Job
	// Result is done, failed, timeout, canceled, dependency, skipped, invalid,
	// assert, unsupported, collected or once, as systemd names it; "" where
	// Err is set.
	Result string
	// Err says why the job could not be enqueued or its end is not known.
	Err error
	// Took is the time from the enqueuing to the end.
	Took time.Duration
}

// Queued is a job that appeared while a batch was followed: those of the batch
// and those that systemd added for dependencies.
type Queued struct {
	ID   uint32
	Unit string
}

// signalRoom is how many signals are buffered for a reader.
const signalRoom = 4096

// Do enqueues all jobs together in mode "replace" and waits for the end of
// each. The results stand in the order of the jobs. The context bounds the
// waiting: a job that has been enqueued is not taken back when it ends.
func (c *Conn) Do(ctx context.Context, jobs []Job) ([]JobEnd, []Queued) {
	l := c.current()
	ends := make([]JobEnd, len(jobs))
	for i, j := range jobs {
		ends[i].Job = j
	}
	if len(jobs) == 0 {
		return ends, nil
	}
	signals := make(chan *dbus.Signal, signalRoom)
	l.jobs.Signal(signals)
	defer l.jobs.RemoveSignal(signals)

	begin := time.Now()
	manager := l.jobs.Object(service, managerPath)
	calls := make([]*dbus.Call, len(jobs))
	l.cork.hold()
	for i, j := range jobs {
		calls[i] = manager.Go(managerIface+"."+string(j.Kind), 0, make(chan *dbus.Call, 1), j.Unit, "replace")
	}
	if err := l.cork.release(); err != nil {
		for i := range ends {
			ends[i].Err = fmt.Errorf("cannot enqueue a job for %s: %w", ends[i].Unit, err)
		}
		return ends, nil
	}

	f := follower{waiting: map[dbus.ObjectPath][]int{}, ended: map[dbus.ObjectPath]jobEnd{}}
	lost := l.jobs.Context().Done()
	open := 0
	for i, call := range calls {
		select {
		case done := <-call.Done:
			var path dbus.ObjectPath
			if err := done.Store(&path); err != nil {
				ends[i].Err = enqueueError(jobs[i], err)
				continue
			}
			f.waiting[path] = append(f.waiting[path], i)
			open++
		case <-ctx.Done():
			ends[i].Err = fmt.Errorf("no answer about %s: %w", jobs[i].Unit, ctx.Err())
		case <-lost:
			ends[i].Err = fmt.Errorf("no answer about %s: %w", jobs[i].Unit, errLost)
		}
	}
	settle := func(path dbus.ObjectPath, end jobEnd) {
		for _, i := range f.waiting[path] {
			ends[i].Result = end.result
			ends[i].Took = end.at.Sub(begin)
			open--
		}
		delete(f.waiting, path)
	}
	for open > 0 {
		for path, end := range f.ended {
			settle(path, end)
			delete(f.ended, path)
		}
		if open == 0 {
			break
		}
		select {
		case sig, ok := <-signals:
			if !ok {
				signals = nil // lost says the rest
				continue
			}
			f.see(sig)
		case <-ctx.Done():
			f.giveUp(ends, fmt.Errorf("its job has not ended: %w", ctx.Err()))
			return ends, f.queued
		case <-lost:
			f.giveUp(ends, errLost)
			return ends, f.queued
		}
	}
	return ends, f.queued
}

var errLost = errors.New("the connection to systemd was lost")

// follower sorts the manager's signals while a batch runs.
type follower struct {
	waiting map[dbus.ObjectPath][]int  // the jobs of the batch, by path; two orders may share one job
	ended   map[dbus.ObjectPath]jobEnd // ends that came before their reply was read
	queued  []Queued
}

type jobEnd struct {
	result string
	at     time.Time
}

func (f *follower) see(sig *dbus.Signal) {
	switch sig.Name {
	case managerIface + ".JobRemoved":
		var id uint32
		var path dbus.ObjectPath
		var unit, result string
		if dbus.Store(sig.Body, &id, &path, &unit, &result) == nil {
			f.ended[path] = jobEnd{result: result, at: time.Now()}
		}
	case managerIface + ".JobNew":
		var id uint32
		var path dbus.ObjectPath
		var unit string
		if dbus.Store(sig.Body, &id, &path, &unit) == nil {
			f.queued = append(f.queued, Queued{ID: id, Unit: unit})
		}
	}
}

func (f *follower) giveUp(ends []JobEnd, err error) {
	for _, waiting := range f.waiting {
		for _, i := range waiting {
			ends[i].Err = err
		}
	}
}

// Conditions of a refused job; match with errors.Is.
var (
	ErrNoSuchUnit    = errors.New("there is no such unit")
	ErrMasked        = errors.New("the unit is masked")
	ErrRefusesManual = errors.New("the unit refuses to be started or stopped by hand")
	ErrNotActive     = errors.New("the unit is not active")
)

func enqueueError(j Job, err error) error {
	cause := err
	if derr, ok := errors.AsType[dbus.Error](err); ok {
		text := derr.Error()
		kinds := map[string]error{
			service + ".NoSuchUnit":                     ErrNoSuchUnit,
			service + ".UnitMasked":                     ErrMasked,
			service + ".OnlyByDependency":               ErrRefusesManual,
			service + ".JobTypeNotApplicable":           fmt.Errorf("the job does not apply to this unit (%s)", text),
			service + ".UnitInactive":                   ErrNotActive,
			"org.freedesktop.DBus.Error.AccessDenied":   fmt.Errorf("access denied: %s", text),
			"org.freedesktop.DBus.Error.FileNotFound":   ErrNoSuchUnit,
			service + ".TransactionIsDestructive":       fmt.Errorf("the job conflicts with another that is queued (%s)", text),
			service + ".TransactionOrderIsCyclic":       fmt.Errorf("the units' ordering is cyclic (%s)", text),
			service + ".LoadFailed":                     fmt.Errorf("the unit file cannot be loaded (%s)", text),
			service + ".BadUnitSetting":                 fmt.Errorf("the unit file has a bad setting (%s)", text),
			service + ".NoIsolation":                    fmt.Errorf("the unit may not be isolated (%s)", text),
			service + ".ShuttingDown":                   errors.New("systemd is shutting down"),
			"org.freedesktop.DBus.Error.LimitsExceeded": fmt.Errorf("systemd's limits are exceeded: %s", text),
		}
		if known, ok := kinds[derr.Name]; ok {
			cause = known
		}
	}
	return fmt.Errorf("cannot enqueue %s for %s: %w", j.Kind, j.Unit, cause)
}
