package planner

import "testing"

// What a new definition makes of a unit that the manager already has in hand.
func TestTurned(t *testing.T) {
	const sleeper, other = "[Service]\nExecStart=/bin/a\n", "[Service]\nExecStart=/bin/b\n"
	one := func(old, new string) *scenario {
		s := machine()
		s.unit("a.service", old)
		return s.redefine("a.service", new)
	}
	remains := one("[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/a\n", sleeper)
	remains.in.Facts.Units["a.service"].SubState = "exited"
	ended := one("[Service]\nType=oneshot\nExecStart=/bin/a\n", sleeper)
	delete(ended.in.Facts.Units, "a.service")
	reload := one("[Unit]\nX-Liveupd-Watch=/etc/a\n"+sleeper+"ExecReload=/bin/r\n", "[Unit]\nX-Liveupd-Watch=/etc/a\n"+sleeper).replace("/etc/a")
	needer := func(old, new, needed, later string) *scenario {
		s := one(old, new)
		s.unit("b.service", needed)
		if later != needed {
			s.redefine("b.service", later)
		}
		return s
	}
	const unneeded = "StopWhenUnneeded=yes\n"
	implicit := needer("Wants=b.service\n"+sleeper, sleeper, unneeded+sleeper, unneeded+sleeper)
	implicit.unit("c.service", sleeper)
	implicit.in.Facts.Units["b.service"].RequiredBy = []string{"c.service"}
	connection := func(accept string) *scenario {
		s := machine()
		s.unit("a.socket", "[Socket]\nListenStream=80\nAccept="+accept+"\n")
		s.unit("a@1.service", sleeper)
		s.maps("a@1.service", 5, "a", libssl).replace(libssl)
		return s.redefine("a@1.service", other)
	}
	refused := one(sleeper, other)
	refused.in.New.Units["a.service"].Refused = "it starts nothing"
	idle := one(sleeper, "Description=x\n"+sleeper)
	idle.in.New.Units["a.service"].Refused = "it starts nothing"
	for name, c := range map[string]struct {
		in   *scenario
		want string
	}{
		"a oneshot that remains becomes a daemon":      {remains, "restart a.service, host daemon-reload"},
		"a oneshot that has ended becomes a daemon":    {ended, "start a.service, host daemon-reload"},
		"a reload that goes with the definition":       {reload, "restart a.service, host daemon-reload"},
		"StopWhenUnneeded= is new and nobody needs it": {one(sleeper, unneeded+sleeper), "~stop a.service, host daemon-reload"},
		"StopWhenUnneeded= is new and somebody needs it": {
			needer(sleeper, unneeded+sleeper, "Requires=a.service\n"+sleeper, "Requires=a.service\n"+sleeper), "host daemon-reload",
		},
		"the last one that needs it does no more": {
			needer("Wants=b.service\n"+sleeper, sleeper, unneeded+sleeper, unneeded+sleeper), "~stop b.service, host daemon-reload",
		},
		"and it would have been restarted": {
			needer("Wants=b.service\n"+sleeper, sleeper, unneeded+sleeper, unneeded+other), "~stop b.service, host daemon-reload",
		},
		"one more needs it, by the manager's word": {implicit, "host daemon-reload"},
		"an instance that serves one connection":   {connection("yes"), "host daemon-reload"},
		"an instance of no such socket":            {connection("no"), "restart a@1.service, host daemon-reload"},
		"a definition that would not be loaded":    {refused, "restart a.service, host daemon-reload, check systemd-analyze verify --man=no a.service"},
		"the same, and it is not started":          {idle, "host daemon-reload"},
	} {
		t.Run(name, func(t *testing.T) {
			p := Make(c.in.in)
			if got := summary(p); got != c.want {
				t.Errorf("Make() = %s; want %s\n%s", got, c.want, pretty(p))
			}
			wellFormed(t, p)
		})
	}
	if p := Make(connection("yes").in); len(p.Spared) == 0 || p.Spared[0].Unit != "a@1.service" || p.Spared[0].Reasons[0].Kind == "" {
		t.Errorf("who serves a connection is not told: %+v", p.Spared)
	}
}
