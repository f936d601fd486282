package unattended

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/systemd"
)

// pre runs the pre hook, once in a run and before anything has changed.
func (r *run) pre(ctx context.Context, p *change.Plan) error {
	if r.p.Pre || len(r.u.Pre) == 0 {
		return nil
	}
	if err := r.phase(phasePre); err != nil {
		return err
	}
	r.p.Pre = true
	env := r.environment()
	var units []string
	for _, u := range p.Units {
		if u.Action != change.ActionDefer {
			units = append(units, u.Unit)
		}
	}
	env = append(env, "LIVEUPD_UNITS="+strings.Join(units, " "), "LIVEUPD_HOST_ACTION="+p.HostAction.String())
	if err := r.hook(ctx, "pre", r.u.Pre, env, "", r.u.HookTimeout.Or(defaultHook)); err != nil {
		return change.WithHint(fmt.Errorf("the pre hook refuses the run: %w; nothing was changed", err), "it is unattended.pre of the configuration")
	}
	return nil
}

// canary settles, and asks whether all is well.
func (r *run) canary(ctx context.Context, g group) error {
	if err := r.phase(phaseCanary); err != nil {
		return err
	}
	if g.wait > 0 {
		if err := r.h.Sleep(ctx, g.wait); err != nil {
			return err
		}
	}
	if len(g.canary) == 0 {
		return nil
	}
	env := append(r.environment(), "LIVEUPD_UNITS="+strings.Join(r.n.Units, " "), "LIVEUPD_GROUP="+g.name)
	if err := r.hook(ctx, "canary", g.canary, env, "", r.u.CanaryTimeout.Or(defaultCanary)); err != nil {
		if g.name != "" {
			return fmt.Errorf("the canary of group %s: %w", g.name, err)
		}
		return fmt.Errorf("the canary: %w", err)
	}
	return nil
}

// environment tells a hook what the run is about.
func (r *run) environment() []string {
	n := r.n
	var packages []string
	for _, p := range n.Packages {
		packages = append(packages, packageText(p))
	}
	text := strings.Join(packages, " ")
	const most = 64 << 10 // an environment string has 128 KiB at most
	if len(text) > most {
		text = text[:most]
	}
	return []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"LIVEUPD_ID=" + n.ID, "LIVEUPD_PLAN=" + n.PlanID, "LIVEUPD_SOURCE=" + n.Source, "LIVEUPD_NAME=" + n.Name,
		"LIVEUPD_VERSION=" + n.Version, "LIVEUPD_PACKAGES=" + text,
	}
}

// outcome adds what came of the run.
func (r *run) outcome() []string {
	n := r.n
	return append(
		r.environment(), "LIVEUPD_RESULT="+n.Result, "LIVEUPD_ERROR="+n.Error, "LIVEUPD_REASON="+n.Reason,
		"LIVEUPD_UNITS="+strings.Join(n.Units, " "), "LIVEUPD_DEFERRED="+strings.Join(unitNames(n.Deferred), " "),
		"LIVEUPD_HOST_ACTION="+n.HostAction.String(), fmt.Sprintf("LIVEUPD_CODE=%d", n.Code),
	)
}

// hook runs a program and records how it went.
func (r *run) hook(ctx context.Context, what string, argv, env []string, stdin string, limit time.Duration) error {
	began := r.h.Now()
	out, err := r.h.Command(ctx, Command{What: what, Argv: argv, Env: clean(env), Stdin: stdin, Limit: limit})
	res := change.StepResult{
		MessageType: "step", Step: change.Step{Do: what, Target: strings.Join(argv, " ")}, Result: "done",
		USec: max(0, r.h.Now().Sub(began).Microseconds()),
	}
	if err != nil {
		res.Result, res.Detail = "failed", err.Error()
		if out != "" {
			res.Detail += "\n" + out
		}
		r.log(MessageHook, fmt.Sprintf("the %s of unattended runs failed: %v", hookName(what), err), map[string]string{
			"LIVEUPD_HOOK": what, "LIVEUPD_OUTPUT": out, "LIVEUPD_ERROR": err.Error(),
		})
		if out != "" {
			err = fmt.Errorf("%w\n  %s", err, strings.ReplaceAll(out, "\n", "\n  "))
		}
	}
	r.n.Steps = append(r.n.Steps, res)
	r.emit(res)
	return err
}

func hookName(what string) string {
	if what == "canary" || what == "mail" {
		return what
	}
	return what + " hook"
}

// clean takes out what no environment can hold.
func clean(env []string) []string {
	out := make([]string, 0, len(env))
	for _, e := range env {
		out = append(out, strings.ReplaceAll(e, "\x00", ""))
	}
	return out
}

// tell runs the hooks that follow a run, and the mail. What fails there is told, and changes no result.
func (r *run) tell(ctx context.Context) {
	ctx = context.WithoutCancel(ctx)
	limit := r.u.HookTimeout.Or(defaultHook)
	if r.p != nil && r.p.Pre {
		if len(r.u.Post) > 0 {
			r.warnOf(r.hook(ctx, "post", r.u.Post, r.outcome(), "", limit))
		}
		r.p.Pre = false
	}
	report, err := json.Marshal(change.Escaped(r.n))
	if err != nil {
		report = []byte("{}") // our own types: it does not happen
	}
	bad, changed := Bad(r.n), r.n.Result == change.NightDone
	if bad && len(r.u.OnFailure) > 0 {
		r.warnOf(r.hook(ctx, "on_failure", r.u.OnFailure, r.outcome(), string(report)+"\n", limit))
	}
	if changed && len(r.u.OnChange) > 0 {
		r.warnOf(r.hook(ctx, "on_change", r.u.OnChange, r.outcome(), string(report)+"\n", limit))
	}
	if r.u.Mail == "" || !(bad || changed && r.u.MailOn == "change" || r.u.MailOn == "always") {
		return
	}
	program := r.h.Sendmail()
	if program == "" {
		r.warn("no mail was sent: there is no sendmail")
		return
	}
	if err := r.hook(ctx, "mail", []string{program, "-i", "-t"}, []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, r.mail(), 2*time.Minute); err != nil {
		r.warn("no mail was sent: " + err.Error())
	}
}

// Bad tells whether somebody should look at a run.
func Bad(n *change.Night) bool {
	return slices.Contains([]string{change.NightFailed, change.NightRolledBack, change.NightPerson}, n.Result)
}

// mail is the message about a run.
func (r *run) mail() string {
	n := r.n
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	header := func(s string) string {
		return strings.Map(func(c rune) rune {
			if c < ' ' || c > '~' {
				return '?'
			}
			return c
		}, s)
	}
	host := r.h.Hostname()
	line("To: %s", header(r.u.Mail))
	line("Subject: %s", header(fmt.Sprintf("liveupd on %s: %s", host, n.Result)))
	line("Auto-Submitted: auto-generated")
	line("MIME-Version: 1.0")
	line("Content-Type: text/plain; charset=utf-8")
	line("")
	line("%s", Sentence(n))
	line("")
	if n.Error != "" {
		line("%s\n", n.Error)
	}
	if n.Hint != "" {
		line("What to do: %s\n", n.Hint)
	}
	for _, p := range n.Packages {
		line("  %s %s -> %s", p.Name, p.From, p.To)
	}
	for _, s := range n.Steps {
		if s.Result != "done" {
			line("  %s %s: %s", s.Step.Do, s.Step.Target, s.Result)
		}
	}
	for _, w := range n.Deferred {
		line("put off since %s: %s (%s)", time.Unix(w.Since, 0).Format("2006-01-02 15:04"), w.Key(), w.Why())
	}
	for _, w := range n.Warnings {
		line("warning: %s", w)
	}
	line("\nSee: liveupd status; journalctl -u liveupd.service")
	return b.String()
}

// log writes to the journal; a machine without one has the report.
func (r *run) log(id, text string, more map[string]string) {
	f := fields(r.n)
	for name, value := range more {
		if value != "" {
			f[name] = value
		}
	}
	priority := systemd.PriorityInfo
	switch id {
	case MessageHook:
		priority = systemd.PriorityWarning
	case MessageDeferred, MessageReboot, MessageResumed:
		priority = systemd.PriorityNotice
	}
	for _, m := range resultMessages {
		if m.id == id {
			priority = m.priority
		}
	}
	if err := r.h.Log(Entry{ID: id, Priority: priority, Text: text, Fields: f}); err != nil {
		r.warn(err.Error())
	}
}
