package engine

import (
	"sync"
	"time"

	"github.com/liveupd/liveupd/change"
)

// progressEvery is how often progress within a phase is told: workers report each file.
const progressEvery = 100 * time.Millisecond

func (e Events) progress(phase string, done, total int64, unit, detail string) {
	if e.Emit != nil {
		e.Emit(change.Progress{MessageType: "progress", Phase: phase, Done: done, Total: total, Unit: unit, Detail: detail})
	}
}

// bytes is the progress of a phase that is measured by what it moves.
func (e Events) bytes(phase string, files, done, total int64) {
	if e.Emit != nil {
		e.Emit(change.Progress{MessageType: "progress", Phase: phase, Done: done, Total: total, Unit: "bytes", Files: files})
	}
}

// throttled passes events on one at a time, and progress within a phase seldom but
// for its end; it adds the rate and the time that is left.
func (e Events) throttled() Events {
	emit := e.Emit
	if emit == nil {
		return e
	}
	var mu sync.Mutex
	m := meter{now: time.Now}
	e.Emit = func(v any) {
		mu.Lock()
		defer mu.Unlock()
		if p, ok := v.(change.Progress); ok {
			if !m.measure(&p) {
				return
			}
			v = p
		}
		emit(v)
	}
	return e
}

// rateOver is the time that a rate is taken over, and rateFrom the least: the first
// moments of a phase tell little.
const (
	rateOver = 5 * time.Second
	rateFrom = time.Second
)

// meter knows how quick a phase is.
type meter struct {
	now   func() time.Time
	phase string
	last  time.Time
	ended bool
	past  []moment // of the last rateOver
}

type moment struct {
	at   time.Time
	done int64
}

// measure fills in rate and time left; false: it is too early to tell anything.
func (m *meter) measure(p *change.Progress) bool {
	now := m.now()
	end := p.Total > 0 && p.Done >= p.Total
	if p.Phase != m.phase {
		m.phase, m.past, m.ended = p.Phase, nil, false
	} else if now.Sub(m.last) < progressEvery && (!end || m.ended) {
		return false
	}
	m.last, m.ended = now, end
	for len(m.past) > 1 && now.Sub(m.past[1].at) >= rateOver {
		m.past = m.past[1:]
	}
	m.past = append(m.past, moment{now, p.Done})
	first := m.past[0]
	took := now.Sub(first.at)
	if took < rateFrom || p.Done <= first.done {
		return true
	}
	rate := float64(p.Done-first.done) / took.Seconds()
	p.Rate = int64(rate)
	if p.Total > p.Done {
		p.LeftSec = int64(float64(p.Total-p.Done)/rate) + 1
	}
	return true
}
