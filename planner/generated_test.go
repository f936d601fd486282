package planner

import (
	"strings"
	"testing"

	"github.com/liveupd/liveupd/change"
)

// A unit that a generator makes is told by what it is made of.
func TestGenerated(t *testing.T) {
	def := func(value string) *change.Unit {
		const file = "/run/systemd/generator/app.service"
		return &change.Unit{Name: "app.service", Fragment: file, Settings: []change.Setting{
			{Section: "Service", Key: "ExecStart", Value: "/usr/bin/app " + value, File: file},
		}}
	}
	mount := func(options string) *change.Unit {
		const file = "/run/systemd/generator/srv.mount"
		return &change.Unit{Name: "srv.mount", Fragment: file, Settings: []change.Setting{
			{Section: "Mount", Key: "Where", Value: "/srv", File: file}, {Section: "Mount", Key: "Options", Value: options, File: file},
		}}
	}
	tree := func(units ...*change.Unit) *change.Tree {
		out := &change.Tree{Units: map[string]*change.Unit{}}
		for _, u := range units {
			out.Units[u.Name] = u
		}
		return out
	}
	in := change.Input{
		Delta: &change.Delta{Entries: []change.Entry{{
			Path: "/etc/app.conf", Op: change.Replace, Aspects: change.AspectContent,
			Old: &change.Node{Type: change.Regular}, New: &change.Node{Type: change.Regular},
		}}},
		Old: tree(def("1"), mount("size=1m")), New: tree(def("2"), mount("size=1m,nofail")),
		Facts: &change.Facts{Running: true, SystemdVersion: 252, Units: map[string]*change.UnitState{
			"app.service": {Name: "app.service", ActiveState: "active", SubState: "running", FragmentPath: "/run/systemd/generator/app.service"},
			"srv.mount":   {Name: "srv.mount", ActiveState: "active", SubState: "mounted", FragmentPath: "/run/systemd/generator/srv.mount"},
		}},
		Policy: change.Policy{Max: change.ActionReboot},
		Generated: &change.Generated{
			Files: map[string]change.GeneratedFile{
				"/run/systemd/generator/app.service": {By: "app-generator", From: "/etc/app.conf"},
				"/run/systemd/generator/srv.mount":   {By: "systemd-fstab-generator"},
			},
			Unsure: map[string]string{"odd-generator": "it is odd"},
		},
	}
	p := Make(in)
	if len(p.Units) != 1 || p.Units[0].Unit != "app.service" || p.Units[0].Action != change.ActionRestart {
		t.Fatalf("units %+v; want a restart of app.service, and no remount for an option of the boot", p.Units)
	}
	if r := p.Units[0].Reasons[0]; r.Path != "/etc/app.conf" || !strings.Contains(r.Rule, "app-generator") {
		t.Errorf("the reason is %+v; want /etc/app.conf through app-generator", r)
	}
	if p.HostAction != change.ActionDaemonReload || len(p.HostReasons) != 2 {
		t.Errorf("the host's action is %s for %+v; want a daemon-reload for both", p.HostAction, p.HostReasons)
	}
	if w := strings.Join(p.Warnings, "\n"); !strings.Contains(w, "odd-generator will make is not known beforehand: it is odd") {
		t.Errorf("warnings %q; want odd-generator named", w)
	}
	// Without a daemon-reload no generator runs.
	in.Generated.Files, in.New = nil, in.Old
	if p := Make(in); len(p.Warnings) != 0 || !(len(p.Units) == 0 && p.HostAction == change.ActionNone) {
		t.Errorf("nothing differs: %+v, %s, %q", p.Units, p.HostAction, p.Warnings)
	}
}
