package planner

import (
	"cmp"
	"fmt"
	"maps"
	"path"
	"slices"

	"github.com/liveupd/liveupd/change"
)

// treatment is what a component bears.
type treatment uint8

const (
	bearsRestart treatment = iota
	// bearsNothing: the restart would take down what others run in it.
	bearsNothing
	// bearsReload: its reload executes the new binary and keeps its clients.
	bearsReload
	// bearsReboot: only a new user space will do.
	bearsReboot
	// bearsIdle: a restart is for free while nobody is logged in.
	bearsIdle
)

type component struct {
	units []string // path.Match patterns
	does  treatment
	why   string
}

// What is not listed bears a restart: sshd (sessions survive by
// KillMode=process), containerd (shims), virtqemud (guests), and systemd-logind,
// systemd-journald and systemd-networkd, which keep their descriptors in the
// manager's store over one restart job.
var components = []component{
	{[]string{"dbus.service", "dbus-broker.service", "dbus-daemon.service"}, bearsReboot, "every client of the bus would lose its connection"},
	{[]string{"user@*.service"}, bearsReload, "the user's services live in it"},
	{[]string{"virtlogd.service", "virtlockd.service"}, bearsReload, "it holds the guests' logs and locks"},
	{[]string{"getty@*.service", "serial-getty@*.service", "console-getty.service", "container-getty@*.service", "autovt@*.service"}, bearsIdle, "somebody may be logged in on it"},
	{[]string{"docker.service"}, bearsNothing, "without live-restore its containers would end"},
	{[]string{"lxc.service", "lxc@*.service", "lxd.service", "incus.service", "incus-agent.service"}, bearsNothing, "its containers would restart"},
	{[]string{"systemd-nspawn@*.service"}, bearsNothing, "the container in it would restart"},
	{[]string{"libvirt-guests.service", "qemu@*.service", "qemu-kvm.service"}, bearsNothing, "its guests would be shut down"},
	{[]string{"podman-*.service", "container-*.service", "pod-*.service"}, bearsNothing, "the container in it would restart"},
	{[]string{"display-manager.service", "gdm.service", "gdm3.service", "lightdm.service", "sddm.service", "lxdm.service", "xdm.service", "slim.service", "greetd.service", "nodm.service"}, bearsNothing, "graphical sessions would end"},
	{[]string{"emergency.service", "rescue.service", "debug-shell.service"}, bearsNothing, "somebody works in it"},
}

// treat tells what a unit bears, by any of its names.
func (p *planning) treat(u *unit) (treatment, string) {
	list := components
	if p.manager != "" {
		if why := p.interactive(u); why != "" {
			return bearsNothing, why
		}
		list = slices.Concat(userComponents, components)
	}
	names := u.names()
	for _, c := range list {
		for _, pattern := range c.units {
			for _, n := range names {
				if ok, err := path.Match(pattern, n); err == nil && ok {
					return c.does, c.why
				}
			}
		}
	}
	return bearsRestart, ""
}

// bear is step 7 of the package comment.
func (p *planning) bear() {
	for _, name := range slices.Sorted(maps.Keys(p.verdicts)) {
		v, u := p.verdicts[name], p.running[name]
		if v.held && v.needs() < change.ActionReload {
			v.deferred = true
			continue
		}
		if p.ruleStops(name, v) || u == nil {
			continue
		}
		if !v.ruled {
			p.heed(u, v)
		}
		if v.deferred || v.needs() < change.ActionReload || v.start {
			continue
		}
		does, why := p.treat(u)
		if v.ruled && does != bearsReboot && !isUserManager(name) {
			does = bearsRestart
		}
		switch {
		case isUserManager(name) && v.rung == change.ActionReload:
			// Where its unit has no reload, a signal does the same (systemd before 253).
		case v.needs() < change.ActionRestart:
		case does == bearsReboot:
			p.reboot(v, why)
		case does == bearsNothing, isUserManager(name):
			v.deferred = true
			v.explain(why)
		case does == bearsReload && !v.stop && u.canReload():
			v.rung = change.ActionReload
		case does == bearsReload:
			v.deferred = true
			v.explain(why)
		case does == bearsIdle && !p.static && !idle(v):
			v.deferred = true
			v.explain(why)
		case u.refusesStop():
			v.deferred = true
			v.explain("systemd refuses to stop or restart it by hand")
		}
	}
}

// idle: the process that holds the terminal is agetty itself, which login
// replaces as soon as somebody logs in.
func idle(v *verdict) bool {
	return slices.ContainsFunc(v.reasons, func(r change.Reason) bool { return r.Comm == "agetty" })
}

func (u *unit) refusesStop() bool {
	if u.state != nil {
		return u.ask(change.FieldRefuses).RefuseManualStop
	}
	return yes(last(u.definition(), "Unit", "RefuseManualStop"))
}

// reboot hands the need for a restart of the message bus to the host. What a
// reload settles is still reloaded.
func (p *planning) reboot(v *verdict, why string) {
	var settled []change.Reason
	for _, r := range v.reasons {
		if r.Kind == "config" {
			settled = append(settled, r)
			continue
		}
		host := r
		host.Kind = "dbus"
		host.Detail = join("; ", r.Kind, r.Detail)
		if host.Path == "" && host.Unit == "" {
			host.Unit = v.unit
		}
		p.needHost(change.ActionSoftReboot, host)
	}
	if v.rung == change.ActionRestart && len(settled) > 0 && p.running[v.unit].canReload() {
		v.rung, v.reasons = change.ActionReload, settled
		return
	}
	v.deferred = true
	v.explain(why)
}

// bound is step 8 of the package comment.
func (p *planning) bound() {
	limit := p.in.Policy.Max
	for _, name := range slices.Sorted(maps.Keys(p.verdicts)) {
		v := p.verdicts[name]
		if v.deferred || v.needs() <= limit {
			continue
		}
		v.explain(fmt.Sprintf("%s is more than the permitted %s", v.action(), limit))
		v.deferred = true
	}
	if a := p.hostAction(); a > limit {
		p.warn("%s needs a %s, which is more than the permitted %s: it stays pending", cmp.Or(p.manager, "the host"), a, limit)
	}
	if p.hostAction() == change.ActionSoftReboot && p.facts.SystemdVersion > 0 && p.facts.SystemdVersion < 254 {
		p.warn("systemd %d has no soft-reboot: a kexec or a reboot will have to do", p.facts.SystemdVersion)
	}
}
