package ui

import (
	"encoding/json"
	"io"
	"sync"

	"github.com/liveupd/liveupd/change"
)

// jsonRenderer prints one object a line, each with its message_type; what is no UTF-8 in it is
// escaped (change.Escape).
type jsonRenderer struct {
	mu  sync.Mutex
	out io.Writer
}

func (j *jsonRenderer) line(v any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	enc := json.NewEncoder(j.out)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(change.Escaped(v)) // a reader that is gone is nobody to tell
}

// list turns an absent list into an empty one: a reader may count on it.
func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

func (j *jsonRenderer) Progress(p change.Progress) {
	p.MessageType = "progress"
	j.line(p)
}

func (j *jsonRenderer) Plan(p *change.Plan) {
	c := *p
	c.MessageType = "plan"
	c.HostReasons, c.Units, c.Steps, c.Warnings = list(c.HostReasons), list(c.Units), list(c.Steps), list(c.Warnings)
	j.line(c)
}

func (j *jsonRenderer) Step(r change.StepResult) {
	r.MessageType = "step"
	j.line(r)
}

func (j *jsonRenderer) Report(r *change.Report) {
	c := *r
	c.MessageType = "report"
	c.Steps, c.Warnings = list(c.Steps), list(c.Warnings)
	j.line(c)
}

func (j *jsonRenderer) Check(r *change.CheckReport) {
	c := *r
	c.MessageType = "report"
	c.Units, c.HostReasons, c.Sessions, c.Warnings = list(c.Units), list(c.HostReasons), list(c.Sessions), list(c.Warnings)
	j.line(c)
}

func (j *jsonRenderer) Verify(r *change.VerifyReport) {
	c := *r
	c.MessageType = "report"
	c.Warnings = list(c.Warnings)
	j.line(c)
}

func (j *jsonRenderer) Finding(d change.Damage) {
	d.MessageType = "damage"
	j.line(d)
}

func (j *jsonRenderer) History(g []change.Generation) { j.generations("history", g) }

func (j *jsonRenderer) Status(g []change.Generation, n *change.NightStatus, c []change.Cache) {
	j.line(struct {
		MessageType string              `json:"message_type"`
		Schema      int                 `json:"schema"`
		Verb        string              `json:"verb"`
		Generations []change.Generation `json:"generations"`
		Unattended  *change.NightStatus `json:"unattended,omitempty"`
		Caches      []change.Cache      `json:"caches,omitempty"`
	}{"report", 1, "status", list(g), n, c})
}

func (j *jsonRenderer) Night(n *change.Night) {
	c := *n
	c.MessageType = "report"
	j.line(c)
}

func (j *jsonRenderer) Policy(p *change.PolicyReport) {
	c := *p
	c.MessageType = "report"
	j.line(c)
}

func (j *jsonRenderer) Error(err error, hint string, code int) {
	j.line(struct {
		MessageType string `json:"message_type"`
		Error       string `json:"error"`
		Hint        string `json:"hint,omitempty"`
		Code        int    `json:"code"`
	}{"error", err.Error(), hint, code})
}

func (j *jsonRenderer) generations(verb string, g []change.Generation) {
	j.line(struct {
		MessageType string              `json:"message_type"`
		Schema      int                 `json:"schema"`
		Verb        string              `json:"verb"`
		Generations []change.Generation `json:"generations"`
	}{"report", 1, verb, list(g)})
}
