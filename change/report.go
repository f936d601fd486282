package change

// Progress is how far a phase has come.
type Progress struct {
	MessageType string `json:"message_type"`       // "progress"
	Phase       string `json:"phase"`              // reading, planning, staging, checking, committing, restarting, verifying, recovering, interrupted
	Done        int64  `json:"done"`               // of Unit
	Total       int64  `json:"total"`              // 0 where not known
	Unit        string `json:"unit"`               // bytes, files, units
	Files       int64  `json:"files,omitempty"`    // how many, where Unit is bytes
	Rate        int64  `json:"rate,omitempty"`     // of Unit per second, over the last seconds; 0 where not known yet
	LeftSec     int64  `json:"left_sec,omitempty"` // how long it would take at this rate; 0 where not known
	Detail      string `json:"detail,omitempty"`
}

// PhaseInterrupted is told when an interrupt has come that no longer stops the run.
const PhaseInterrupted = "interrupted"

// StepResult is what came of one step.
type StepResult struct {
	MessageType string `json:"message_type,omitempty"` // "step" on a line of its own
	Step        Step   `json:"step"`
	Result      string `json:"result"` // done, failed, skipped, undone
	Detail      string `json:"detail,omitempty"`
	USec        int64  `json:"usec"`              // how long it took, in microseconds
	Journal     string `json:"journal,omitempty"` // the unit's last journal lines, where it failed
}

// Report is what came of an apply, a restart, a rollback or a recovery.
type Report struct {
	MessageType string       `json:"message_type"` // "report"
	Schema      int          `json:"schema"`
	Verb        string       `json:"verb"`   // apply, rollback, recover, restart
	ID          string       `json:"id"`     // the transaction
	PlanID      string       `json:"plan"`   // the plan that was carried out
	Result      string       `json:"result"` // done, nothing-to-do, failed, rolled-back, undone, pending
	Error       string       `json:"error,omitempty"`
	Hint        string       `json:"hint,omitempty"`
	Steps       []StepResult `json:"steps"`
	HostAction  Action       `json:"host_action"` // what is still pending
	Deferred    []UnitPlan   `json:"deferred,omitempty"`
	Warnings    []string     `json:"warnings"`
	Freed       []string     `json:"freed,omitempty"`       // by clean: the transactions that were removed
	FreedBytes  int64        `json:"freed_bytes,omitempty"` // what they occupied, and the caches
	FreedCaches []Cache      `json:"freed_caches,omitempty"`
	SwapUSec    int64        `json:"swap_usec,omitempty"`   // the window in which old and new could be met
	Frozen      []string     `json:"frozen,omitempty"`      // the units that stood still in it
	FrozenUSec  int64        `json:"frozen_usec,omitempty"` // for how long
	// Command is how exec's command ended, where it did not succeed.
	Command *CommandResult `json:"command,omitempty"`
	// Network is what the machine is reached by, as it was watched; Health is how the units are.
	Network []NetworkFinding `json:"network,omitempty"`
	Health  []HealthCheck    `json:"health,omitempty"`
}

// Cache is what is kept on the disk to save the next run work; liveupd clean removes it.
type Cache struct {
	Name  string `json:"name"`
	What  string `json:"what"` // for a person
	Bytes int64  `json:"bytes"`
}

// CommandResult is how a command ended: by itself, or by a signal.
type CommandResult struct {
	Exit   int    `json:"exit"` // -1 where a signal ended it
	Signal string `json:"signal,omitempty"`
}

// Generation is one transaction that lies in the store.
type Generation struct {
	ID         string   `json:"id"`
	State      string   `json:"state"` // staging, committing, swapped, restarting, verified, rolling-back, rolled-back
	Time       int64    `json:"time"`  // when it began, seconds since the epoch
	Source     string   `json:"source"`
	Name       string   `json:"name,omitempty"`
	Version    string   `json:"version,omitempty"`
	Sequence   uint64   `json:"sequence,omitempty"`
	PlanID     string   `json:"plan"`
	Changes    Counts   `json:"changes"`
	Retained   bool     `json:"retained"` // its old files are kept: it can be rolled back
	HostAction Action   `json:"host_action"`
	UnderWay   bool     `json:"under_way,omitempty"` // status: somebody is at work on it
	Deferred   []string `json:"deferred,omitempty"`  // units that still wait
	// Waiting tells of the same units since when they wait, and why.
	Waiting []Waiting `json:"waiting,omitempty"`
	// ThisBoot: it began in the boot that runs now; false for what was removed.
	ThisBoot bool `json:"-"`
	// CarriedHost is what of HostAction an earlier update had left.
	CarriedHost Action `json:"-"`
	Snapshot    string `json:"snapshot,omitempty"` // the path of the root's snapshot from before it
}

// Unfinished tells whether the transaction has come to none of its ends.
func (g *Generation) Unfinished() bool { return g.State != "verified" && g.State != "rolled-back" }

// Stale is a unit that runs code or configuration which is no longer what its paths hold.
type Stale struct {
	Unit    string   `json:"unit"`
	Manager string   `json:"manager,omitempty"` // the user@ unit whose manager the unit belongs to
	Action  Action   `json:"action"`
	Reasons []Reason `json:"reasons"`
}

// CheckReport is what check found.
type CheckReport struct {
	MessageType string   `json:"message_type"` // "report"
	Schema      int      `json:"schema"`
	Verb        string   `json:"verb"` // check
	Units       []Stale  `json:"units"`
	HostAction  Action   `json:"host_action"`
	HostReasons []Reason `json:"host_reasons"`
	// Effects are what the managers of users need: a daemon-reload, by the user@ unit.
	Effects  []Effect `json:"effects,omitempty"`
	Sessions []Hit    `json:"sessions"` // processes of logged-in users, which no restart of a unit reaches
	Examined int      `json:"examined"` // processes that were looked at
	Warnings []string `json:"warnings"`
	// Incomplete: not all could be looked at, so that nothing found is not all
	// well. Unread counts the processes, Gaps tell in words what was left out.
	Incomplete bool     `json:"incomplete"`
	Unread     int      `json:"unread"`
	Gaps       []string `json:"gaps,omitempty"`
	// Spared were met and ask for nothing; Detail says why.
	Spared []Hit             `json:"spared,omitempty"`
	Looked map[string]Looked `json:"-"` // by unit, where it was asked for
	// Waiting are the units that an earlier update put off and that still run the old state.
	Waiting      []string      `json:"waiting,omitempty"`
	Kernel       *Release      `json:"kernel,omitempty"`
	Microcode    *Release      `json:"microcode,omitempty"`
	Explanations []Explanation `json:"explanations,omitempty"` // of the units that were asked about
}

// Looked is how much of a unit was looked at.
type Looked struct {
	Processes int
	Unread    int
	Files     int // that they map executable, counted for each process
}

// Release is what runs beside what is installed, of what only a boot takes up.
type Release struct {
	Running string `json:"running"`
	Newest  string `json:"newest,omitempty"` // what the next boot would take, "" where that is not known
	// State is one of current, rebuilt (another build of the same release), newer, unknown.
	State  string `json:"state"`
	Detail string `json:"detail,omitempty"`
}

// Explanation tells what was found about one unit, and why it is left alone
// where it is.
type Explanation struct {
	Unit      string   `json:"unit"`
	Manager   string   `json:"manager,omitempty"` // the user@ unit of a user's
	State     string   `json:"state"`             // as systemd has it, "not loaded" where it has none
	Action    Action   `json:"action"`            // none: it is left alone
	Reasons   []Reason `json:"reasons"`
	Spared    []Reason `json:"spared"`    // what was met and asks for nothing, each with why
	Processes int      `json:"processes"` // that were looked at
	Unread    int      `json:"unread"`    // that could not be
	Files     int      `json:"files"`     // that these run or map, and that were compared
}

// Damage is one path that is not what the last committed manifest says.
type Damage struct {
	MessageType string   `json:"message_type,omitempty"` // "damage" on a line of its own
	Path        string   `json:"path"`
	Problem     string   `json:"problem"` // missing, unexpected, differs
	Aspects     []string `json:"aspects,omitempty"`
	Owner       string   `json:"owner"` // damage (the image's) or machine (the machine may change it)
	Detail      string   `json:"detail,omitempty"`
}

// VerifyReport sums up what verify found: each finding was told when it was met.
type VerifyReport struct {
	MessageType string   `json:"message_type"` // "report"
	Schema      int      `json:"schema"`
	Verb        string   `json:"verb"` // verify
	Generation  string   `json:"generation"`
	Checked     int      `json:"checked"`
	Damaged     int      `json:"damaged"` // paths of the image
	Machine     int      `json:"machine"` // paths that the machine may change
	Warnings    []string `json:"warnings"`
}

// DiffReport is what came of making a patch.
type DiffReport struct {
	MessageType string `json:"message_type"` // "report"
	Schema      int    `json:"schema"`
	Verb        string `json:"verb"`   // diff
	Result      string `json:"result"` // done, nothing-to-do
	Old         string `json:"old"`
	New         string `json:"new"`
	Out         string `json:"out,omitempty"`
	Encoder     string `json:"encoder"`
	Entries     int    `json:"entries"` // that changed or came
	Removed     int    `json:"removed"`
	Bases       int    `json:"bases"`   // files that a machine must have as the old tree has them
	Content     int64  `json:"content"` // bytes of what it stands for
	Bytes       int64  `json:"bytes"`   // of the patch
}
