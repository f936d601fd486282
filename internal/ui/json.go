package ui

import (
	"encoding/json"
	"io"
	"sync"

	"github.com/liveupd/liveupd/change"
)

// jsonRenderer prints one object a line, each with its message_type.
type jsonRenderer struct {
	mu  sync.Mutex
	out io.Writer
}

func (j *jsonRenderer) line(v any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	enc := json.NewEncoder(j.out)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v) // a reader that is gone is nobody to tell
}

func (j *jsonRenderer) Progress(p change.Progress)       { j.line(p) }
func (j *jsonRenderer) Plan(p *change.Plan)              { j.line(p) }
func (j *jsonRenderer) Report(r *change.Report)          { j.line(r) }
func (j *jsonRenderer) Check(r *change.CheckReport)      { j.line(r) }
func (j *jsonRenderer) Verify(r *change.VerifyReport)    { j.line(r) }
func (j *jsonRenderer) History(list []change.Generation) { j.generations("history", list) }
func (j *jsonRenderer) Status(list []change.Generation)  { j.generations("status", list) }
func (j *jsonRenderer) Step(r change.StepResult)         { r.MessageType = "step"; j.line(r) }
func (j *jsonRenderer) Error(err error, hint string, code int) {
	j.line(struct {
		MessageType string `json:"message_type"`
		Error       string `json:"error"`
		Hint        string `json:"hint,omitempty"`
		Code        int    `json:"code"`
	}{"error", err.Error(), hint, code})
}

func (j *jsonRenderer) generations(verb string, list []change.Generation) {
	if list == nil {
		list = []change.Generation{}
	}
	j.line(struct {
		MessageType string              `json:"message_type"`
		Schema      int                 `json:"schema"`
		Verb        string              `json:"verb"`
		Generations []change.Generation `json:"generations"`
	}{"report", 1, verb, list})
}
