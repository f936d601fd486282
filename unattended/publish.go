package unattended

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/engine"
	"github.com/liveupd/liveupd/internal/config"
)

// motdLink is where pam_motd(8) looks, on Debian and on Ubuntu (its folders are /etc/motd.d, /run/motd.d and
// /usr/lib/motd.d). The text itself outlives a boot in Dir.
const motdLink = "/run/motd.d/liveupd"

// Refresh writes the motd and the metrics anew from what is kept: after an update by hand, and at
// boot. Where nothing of unattended runs is used it does nothing. confined: the caller may not open the
// root's file systems itself.
func Refresh(ctx context.Context, h Host, dir string, confined bool) error {
	if dir == "" {
		dir = Dir
	}
	cfg, err := config.Load("/")
	if err != nil {
		return err
	}
	state, err := LoadState(dir)
	if err != nil {
		return err
	}
	state.BackOff = rebase(state.BackOff, h.Now())
	list, err := h.Look(ctx, engine.Request{Verb: "status", Unattended: confined})
	if err != nil {
		return err
	}
	if !cfg.Unattended.Enabled && state.Last == nil && len(engine.Waiting(list)) == 0 {
		if _, err := os.Lstat(motdLink); err != nil {
			return nil
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if takenBack(state, list, h.Now(), cfg.Unattended.BackOff.Or(firstBackOff)) {
		// A run that is under way has the state in its hands; the next one notes it then.
		if lock, err := takeLock(dir); err == nil {
			err = writeJSON(dir, stateName, state)
			lock.Close()
			if err != nil {
				return err
			}
		}
	}
	return publish(h, dir, &cfg.Unattended, state, list)
}

// publish tells the state to whoever logs in and to whoever collects metrics.
func publish(h Host, dir string, u *config.Unattended, state *State, list []change.Generation) error {
	var problems []error
	if u.Metrics != "" {
		if old, err := os.Lstat(u.Metrics); err == nil && !old.Mode().IsRegular() {
			problems = append(problems, fmt.Errorf("%s is no regular file: no metrics were written", u.Metrics))
		} else if err := replace(u.Metrics, metrics(state, u.Enabled, list), 0o644); err != nil {
			problems = append(problems, fmt.Errorf("cannot write the metrics: %w", err))
		}
	}
	text := ""
	if !u.NoMotd {
		text = Motd(state, list, h.Now())
	}
	if err := putMotd(dir, text); err != nil {
		problems = append(problems, fmt.Errorf("cannot write the message of the day: %w", err))
	}
	return errors.Join(problems...)
}

// putMotd keeps the text, and leads pam_motd to it; with no text there is no file.
func putMotd(dir, text string) error {
	file := filepath.Join(dir, motdName)
	if text == "" {
		err := remove(dir, motdName)
		if e := os.Remove(motdLink); dir == Dir && e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
		return err
	}
	if old, err := os.ReadFile(file); err != nil || string(old) != text {
		if err := replace(file, []byte(text), 0o644); err != nil {
			return err
		}
	}
	if dir != Dir {
		return nil
	}
	if to, err := os.Readlink(motdLink); err == nil && to == file {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(motdLink), 0o755); err != nil {
		return err
	}
	if err := os.Remove(motdLink); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Symlink(file, motdLink)
}

// Motd is what somebody who logs in should know; "" where there is nothing.
func Motd(state *State, list []change.Generation, now time.Time) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, "liveupd: "+format+"\n", args...) }
	day := func(at int64) string { return time.Unix(at, 0).In(now.Location()).Format("2006-01-02 15:04") }
	if n := state.Looked; n != nil && Bad(n) {
		line("%s (%s)", plain(Sentence(n)), day(n.Ended))
	}
	for _, f := range state.BackOff {
		if waits(f, now) {
			line("%s", plain(backOffText(&f)))
		}
	}
	for _, w := range engine.Waiting(list) {
		line("%s still runs the old state, since %s%s: %s", plain(w.Key()), day(w.Since), days(now.Sub(time.Unix(w.Since, 0))), plain(w.Why()))
	}
	host := pending(list)
	if host > change.ActionNone {
		line("a %s is pending", host)
	}
	if b.Len() > 0 {
		line("see: liveupd status")
	}
	return b.String()
}

// plain takes out what a terminal would obey.
func plain(s string) string {
	return strings.Map(func(c rune) rune {
		if c < ' ' || c >= 0x7f && c < 0xa0 {
			return '?'
		}
		return c
	}, s)
}

// days is how old something is, "" for less than two days: the text is read long after it was written.
func days(d time.Duration) string {
	if n := int(d / (24 * time.Hour)); n > 1 {
		return fmt.Sprintf(" (%d days)", n)
	}
	return ""
}

// metrics renders the state for a textfile collector (OpenMetrics 1.0, gauges and counters;
// Prometheus' text format reads them too).
func metrics(state *State, enabled bool, list []change.Generation) []byte {
	var b bytes.Buffer
	family := func(name, kind, help string) { fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind) }
	number := func(on bool) int {
		if on {
			return 1
		}
		return 0
	}
	label := func(s string) string {
		return strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(strings.ToValidUTF8(s, "\uFFFD"))
	}
	family("liveupd_unattended_enabled", "gauge", "1 where unattended runs are enabled.")
	fmt.Fprintf(&b, "liveupd_unattended_enabled %d\n", number(enabled))
	results := []string{
		change.NightDone, change.NightNothing, change.NightSkipped, change.NightBackedOff, change.NightUndone,
		change.NightFailed, change.NightRolledBack, change.NightPerson,
	}
	if n := state.Last; n != nil {
		family("liveupd_unattended_last_run_timestamp_seconds", "gauge", "When the last unattended run ended, in seconds since the epoch.")
		fmt.Fprintf(&b, "liveupd_unattended_last_run_timestamp_seconds %d\n", n.Ended)
		family("liveupd_unattended_last_duration_seconds", "gauge", "How long the last unattended run took.")
		fmt.Fprintf(&b, "liveupd_unattended_last_duration_seconds %d\n", max(0, n.Ended-n.Began))
		family("liveupd_unattended_last_result", "gauge", "1 for the result of the last unattended run.")
		for _, result := range results {
			fmt.Fprintf(&b, "liveupd_unattended_last_result{result=\"%s\"} %d\n", result, number(n.Result == result))
		}
	}
	if n := state.Changed; n != nil {
		family("liveupd_unattended_last_change_timestamp_seconds", "gauge", "When an unattended run last changed something, in seconds since the epoch.")
		fmt.Fprintf(&b, "liveupd_unattended_last_change_timestamp_seconds %d\n", n.Ended)
	}
	family("liveupd_unattended_runs", "counter", "Unattended runs that ended so, since the state was first kept.")
	for _, result := range results {
		fmt.Fprintf(&b, "liveupd_unattended_runs_total{result=\"%s\"} %d\n", result, state.Runs[result])
	}
	family("liveupd_unattended_backed_off", "gauge", "Updates that have failed and are left alone for a while.")
	fmt.Fprintf(&b, "liveupd_unattended_backed_off %d\n", len(state.BackOff))
	waiting := engine.Waiting(list)
	family("liveupd_deferred_units", "gauge", "Units that still run the old state, for policy put them off.")
	fmt.Fprintf(&b, "liveupd_deferred_units %d\n", len(waiting))
	family("liveupd_deferred_since_timestamp_seconds", "gauge", "Since when a unit is put off, in seconds since the epoch.")
	for _, w := range waiting {
		fmt.Fprintf(&b, "liveupd_deferred_since_timestamp_seconds{unit=\"%s\"} %d\n", label(w.Key()), w.Since)
	}
	host := pending(list)
	family("liveupd_pending_host_action", "gauge", "1 for the reboot of some kind that an update needs.")
	for _, a := range []change.Action{change.ActionSoftReboot, change.ActionKexec, change.ActionReboot} {
		fmt.Fprintf(&b, "liveupd_pending_host_action{action=\"%s\"} %d\n", a, number(host == a))
	}
	b.WriteString("# EOF\n")
	return b.Bytes()
}
