package change

// Waiting is a unit that policy, a person or its own unit file put off: it still runs the
// old state.
type Waiting struct {
	Unit    string `json:"unit"`
	Manager string `json:"manager,omitempty"` // the user@ unit of a user's
	Since   int64  `json:"since"`             // when it was first put off, seconds since the epoch
	By      string `json:"by,omitempty"`      // the transaction that first put it off
	// Needs is what brings it up to date, reload or restart.
	Needs   Action   `json:"needs"`
	Reasons []Reason `json:"reasons,omitempty"` // a few of them
	// Invocation is the run of the unit that has the old state, as systemd names it: another one has the new.
	Invocation string `json:"invocation,omitempty"`
}

// Key names it by UnitKey.
func (w *Waiting) Key() string { return UnitKey(w.Manager, w.Unit) }

// Why is the reason in one clause.
func (w *Waiting) Why() string {
	for _, r := range w.Reasons {
		if r.Detail != "" {
			return r.Detail
		}
	}
	for _, r := range w.Reasons {
		switch {
		case r.Path != "":
			return r.Kind + " " + r.Path
		case r.Unit != "":
			return r.Kind + " " + r.Unit
		}
	}
	return ""
}

// BackOff is an update that failed, and that is left alone for a while.
type BackOff struct {
	// Key names the update: its packages with their versions, or the source's version or content.
	Key      string    `json:"key"`
	Source   string    `json:"source"`
	Name     string    `json:"name,omitempty"`
	Version  string    `json:"version,omitempty"`
	Packages []Package `json:"packages,omitempty"`
	Failures int       `json:"failures"` // so far
	Last     int64     `json:"last"`     // when it failed, seconds since the epoch
	Until    int64     `json:"until"`    // when it is tried again
	Error    string    `json:"error"`
}

// The results of an unattended run.
const (
	NightDone       = "done"           // something was applied or restarted
	NightNothing    = "nothing-to-do"  // looked, and all is up to date
	NightSkipped    = "skipped"        // it may not run now; Reason says why
	NightBackedOff  = "backed-off"     // what is pending has failed before
	NightUndone     = "undone"         // stopped before the commit: nothing changed
	NightFailed     = "failed"         // nothing changed by it, or what changed stayed
	NightRolledBack = "rolled-back"    // failed after the commit, and taken back
	NightPerson     = "needs-a-person" // a recovery cannot decide by itself
)

// Night is what came of an unattended run.
type Night struct {
	MessageType string       `json:"message_type"` // "report"
	Schema      int          `json:"schema"`
	Verb        string       `json:"verb"`   // unattended
	Result      string       `json:"result"` // one of those above
	Began       int64        `json:"began"`  // seconds since the epoch
	Ended       int64        `json:"ended"`
	ID          string       `json:"id"` // the transaction, "" for none
	PlanID      string       `json:"plan,omitempty"`
	Source      string       `json:"source,omitempty"`
	Name        string       `json:"name,omitempty"`
	Version     string       `json:"version,omitempty"`
	Packages    []Package    `json:"packages,omitempty"`
	Changes     Counts       `json:"changes"`
	Units       []string     `json:"units"` // that were restarted, reloaded, stopped or started
	Reason      string       `json:"reason,omitempty"`
	Error       string       `json:"error,omitempty"`
	Hint        string       `json:"hint,omitempty"`
	Steps       []StepResult `json:"steps"` // hooks and canaries
	Deferred    []Waiting    `json:"deferred"`
	HostAction  Action       `json:"host_action"`      // what is still pending
	Reboot      int64        `json:"reboot,omitempty"` // when the machine will be rebooted, seconds since the epoch
	BackOff     []BackOff    `json:"back_off"`
	Held        []string     `json:"held,omitempty"` // packages that were kept back, for they have failed
	Resumed     string       `json:"resumed,omitempty"`
	DryRun      bool         `json:"dry_run,omitempty"`
	Warnings    []string     `json:"warnings"`
	Code        int          `json:"code"` // the exit status
}

// NightStatus is what status tells of unattended runs.
type NightStatus struct {
	Enabled bool      `json:"enabled"`
	Last    *Night    `json:"last,omitempty"`        // the last run that ended
	Changed *Night    `json:"last_change,omitempty"` // the last one that changed something
	Phase   string    `json:"phase,omitempty"`       // of a run that is under way or was cut off
	Since   int64     `json:"since,omitempty"`       // its begin
	BackOff []BackOff `json:"back_off"`
	Note    string    `json:"note,omitempty"` // why less than all is told
}

// Allowance is whether one condition lets an unattended run go on now, and why.
type Allowance struct {
	What   string `json:"what"` // enabled, windows, power, network, locks, unfinished, source, max, reboot
	Allows bool   `json:"allows"`
	Detail string `json:"detail"`
	// Changes is when that changes by itself, seconds since the epoch; 0 where it does not or is not known.
	Changes int64 `json:"changes,omitempty"`
}

// RuleState is a rule of the administrator as it stands now.
type RuleState struct {
	Source   string   `json:"source"` // FILE:LINE
	Units    []string `json:"units,omitempty"`
	Paths    []string `json:"paths,omitempty"`
	Packages []string `json:"packages,omitempty"`
	Action   string   `json:"action,omitempty"`
	Windows  []string `json:"windows,omitempty"`
	Open     bool     `json:"open"` // one of its windows is, or it has none
	Changes  int64    `json:"changes,omitempty"`
	Reason   string   `json:"reason,omitempty"`
	Running  []string `json:"running,omitempty"` // units that its names match and that run
	Never    string   `json:"never,omitempty"`   // why it cannot be met by unattended runs
}

// PolicyReport is what would be allowed at a time, and why.
type PolicyReport struct {
	MessageType string      `json:"message_type"` // "report"
	Schema      int         `json:"schema"`
	Verb        string      `json:"verb"` // policy
	At          int64       `json:"at"`
	Allowed     bool        `json:"allowed"` // an unattended run may change something
	Allowances  []Allowance `json:"allowances"`
	Max         string      `json:"max"`
	Rules       []RuleState `json:"rules"`
	BackOff     []BackOff   `json:"back_off"`
	Deferred    []Waiting   `json:"deferred"`
	Warnings    []string    `json:"warnings"`
}
