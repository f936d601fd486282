package engine

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/liveupd/liveupd/change"
)

func TestPulse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPulse(Request{Root: t.TempDir()})
		p.beat(change.Progress{Phase: "planning"})
		time.Sleep(24 * time.Hour)
		if !p.well() {
			t.Error("a run that waits for a person is taken for hung")
		}
		p.beat(change.Progress{Phase: "committing"})
		time.Sleep(29 * time.Minute)
		p.beat(change.StepResult{})
		time.Sleep(29 * time.Minute)
		if !p.well() {
			t.Error("a slow run is taken for hung")
		}
		time.Sleep(2 * time.Minute)
		if p.well() {
			t.Error("a run that has told nothing for half an hour is well")
		}
	})
}

func TestAfter(t *testing.T) {
	at := time.Now()
	step := func(do, target string, begin, end time.Duration) done {
		return done{step: change.Step{Do: do, Target: target}, begin: at.Add(begin), end: at.Add(end)}
	}
	const s = time.Second
	for _, tt := range []struct {
		name   string
		course []done
		want   string
	}{
		{"nothing was done", nil, ""},
		{"one", []done{step("restart", "a.service", -s, s)}, "restart of a.service"},
		{"the one that was under way", []done{step("restart", "a.service", -9*s, -5*s), step("reload", "b.service", -s, s)}, "reload of b.service"},
		{"not the one that came later", []done{step("restart", "a.service", -9*s, -5*s), step("restart", "b.service", 2*s, 3*s)}, "restart of a.service"},
		{
			"the one in charge of the network",
			[]done{step("restart", "systemd-networkd.service", -9*s, -5*s), step("restart", "b.service", -s, s)},
			"restart of systemd-networkd.service",
		},
		{"a step of the host", []done{step("sysctl", "net.ipv4.ip_forward = 0", -s, -s/2)}, "the step sysctl net.ipv4.ip_forward = 0"},
		{"what a killed run had done", []done{{step: change.Step{Do: "daemon-reload", Target: "systemd"}}, {step: change.Step{Do: "restart", Target: "lan.service"}}}, "restart of lan.service"},
	} {
		w := &watching{course: tt.course}
		if got := w.after(at); got != tt.want {
			t.Errorf("%s: after() = %q; want %q", tt.name, got, tt.want)
		}
	}
}
