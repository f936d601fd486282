package config

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"time"
)

// What a watch over the update does with what it finds.
const (
	ModeOn     = "on"     // takes the update back
	ModeReport = "report" // tells it and goes on
	ModeOff    = "off"    // does not look
)

// Guard is the table [guard]: the watch over what the machine is reached by, and over
// liveupd itself. guard = "off" stands for the whole table.
type Guard struct {
	Mode   string   `toml:"mode"`   // on (the default), report, off
	Settle span     `toml:"settle"` // how long the network is watched after the last step
	Wait   span     `toml:"wait"`   // how long something may be away and come back by itself
	Ignore []string `toml:"ignore"` // links that do not count, as path.Match has it
	Stuck  span     `toml:"stuck"`  // after so long without a sign of life a run is killed and settled
	Hung   span     `toml:"hung"`   // after so long in one step without progress, too
}

// Health is the table [health]: whether the units do what they are for.
type Health struct {
	Mode    string   `toml:"mode"`
	Settle  span     `toml:"settle"`  // how long units are watched after their jobs
	Listen  span     `toml:"listen"`  // how long a restarted service may take to listen again
	Command span     `toml:"command"` // how long X-Liveupd-Health= commands may take to succeed
	Ignore  []string `toml:"ignore"`  // units that do not count, as path.Match has it
}

// UnmarshalText takes guard = "off" for mode = "off".
func (g *Guard) UnmarshalText(b []byte) error { g.Mode = switched(b); return oneMode("guard", g.Mode) }

// UnmarshalText takes health = "off" for mode = "off".
func (h *Health) UnmarshalText(b []byte) error {
	h.Mode = switched(b)
	return oneMode("health", h.Mode)
}

// Defaults fills in what is not said.
func (g Guard) Defaults() Guard {
	g.Mode = cmp.Or(g.Mode, ModeOn)
	g.Settle = cmp.Or(g.Settle, span(5*time.Second))
	g.Wait = cmp.Or(g.Wait, span(30*time.Second))
	g.Stuck = cmp.Or(g.Stuck, span(time.Minute))
	g.Hung = cmp.Or(g.Hung, span(30*time.Minute))
	return g
}

// Defaults fills in what is not said.
func (h Health) Defaults() Health {
	h.Mode = cmp.Or(h.Mode, ModeOn)
	h.Settle = cmp.Or(h.Settle, span(5*time.Second))
	h.Listen = cmp.Or(h.Listen, span(30*time.Second))
	h.Command = cmp.Or(h.Command, span(20*time.Second))
	return h
}

// wrong tells what no run could be watched with.
func (g *Guard) wrong() error {
	if err := oneMode("guard", g.Mode); err != nil {
		return err
	}
	for _, d := range []struct {
		name     string
		value    span
		min, max time.Duration
	}{
		{"guard.settle", g.Settle, time.Second, 10 * time.Minute},
		{"guard.wait", g.Wait, time.Second, 30 * time.Minute},
		{"guard.stuck", g.Stuck, 3 * time.Second, time.Hour},
		{"guard.hung", g.Hung, time.Minute, 24 * time.Hour},
	} {
		if err := d.value.within(d.name, d.min, d.max); err != nil {
			return err
		}
	}
	return patterns("guard.ignore", g.Ignore)
}

func (h *Health) wrong() error {
	if err := oneMode("health", h.Mode); err != nil {
		return err
	}
	for _, d := range []struct {
		name     string
		value    span
		min, max time.Duration
	}{
		// A unit that ends at once and is restarted after systemd's 100 ms is not seen in less.
		{"health.settle", h.Settle, time.Second, 10 * time.Minute},
		{"health.listen", h.Listen, time.Second, 30 * time.Minute},
		{"health.command", h.Command, time.Second, 30 * time.Minute},
	} {
		if err := d.value.within(d.name, d.min, d.max); err != nil {
			return err
		}
	}
	return patterns("health.ignore", h.Ignore)
}

// switched reads true and false as on and off.
func switched(b []byte) string {
	switch string(b) {
	case "true":
		return ModeOn
	case "false":
		return ModeOff
	}
	return string(b)
}

func oneMode(name, mode string) error {
	if !slices.Contains([]string{"", ModeOn, ModeReport, ModeOff}, mode) {
		return fmt.Errorf("%s = %q is none of on, report, off", name, mode)
	}
	return nil
}

func patterns(name string, list []string) error {
	for _, glob := range list {
		if _, err := path.Match(glob, ""); err != nil || glob == "" {
			return fmt.Errorf("%s: %q is no pattern: * ? and [a-z] are known, and a bracket has to be closed", name, glob)
		}
	}
	return nil
}

// span is a span of time as Go writes it: "5s", "2m30s".
type span time.Duration

// UnmarshalText reads a span of time.
func (d *span) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("%q is no span of time: write \"5s\" or \"2m\"", b)
	}
	if v <= 0 {
		return fmt.Errorf("%q: a span of time is more than nothing", b)
	}
	*d = span(v)
	return nil
}

// D is the span as time has it.
func (d span) D() time.Duration { return time.Duration(d) }

func (d span) within(name string, least, most time.Duration) error {
	if d != 0 && (d.D() < least || d.D() > most) {
		return fmt.Errorf("%s = %q is not between %s and %s", name, d.D(), least, most)
	}
	return nil
}
