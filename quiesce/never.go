package quiesce

import (
	"path"
	"slices"
	"strings"
)

// never are units that the swap, the restarts after it or whoever watches may need to
// make progress, by the reason.
var never = []struct{ pattern, why string }{
	{"init.scope", "PID 1 carries out the restarts"},
	{"dbus.service", "the bus: systemd and liveupd speak over it"},
	{"dbus-broker.service", "the bus: systemd and liveupd speak over it"},
	{"systemd-journald*.service", "a full pipe to it would stop those who write"},
	{"systemd-*.service", "parts of the service manager wait for each other"},
	{"user@*.service", "a user's manager: the session that called us may be below it"},
	{"session-*.scope", "somebody's session: perhaps the one that called us"},
	{"liveupd*", "ourselves"},
	{"iscsid.service", "storage"},
	{"open-iscsi.service", "storage"},
	{"iscsi.service", "storage"},
	{"multipathd.service", "storage"},
	{"dm-event.service", "storage"},
	{"lvm2-*.service", "storage"},
	{"mdmonitor.service", "storage"},
	{"mdmon@*.service", "storage"},
	{"nbd*.service", "storage"},
	{"rpcbind.service", "network file systems"},
	{"rpc-*.service", "network file systems"},
	{"nfs-*.service", "network file systems"},
	{"nfs*.service", "network file systems"},
	{"zfs-*.service", "storage"},
	{"ceph*", "storage"},
	{"glusterd.service", "storage"},
	{"drbd*.service", "storage"},
	{"tgt.service", "storage"},
	{"target*.service", "storage"},
	{"tcmu-runner.service", "storage"},
	{"autofs.service", "mounts"},
	{"gssproxy.service", "network file systems"},
	{"winbind.service", "names of users"},
	{"sssd*.service", "names of users"},
	{"nscd.service", "names of users"},
	{"polkit.service", "who may do what"},
	{"watchdog.service", "a watchdog that stands still resets the machine"},
	{"corosync.service", "a cluster expels a member that stands still"},
	{"pacemaker.service", "a cluster expels a member that stands still"},
	{"keepalived.service", "its peer would take over"},
	{"containerd.service", "containers"},
	{"docker*", "containers"},
	{"libpod-*", "containers"},
	{"crio*", "containers"},
	{"kubelet.service", "containers"},
	{"lxc*", "containers"},
	{"incus*", "containers"},
	{"machine-*", "a machine"},
	{"systemd-nspawn@*.service", "a machine"},
	{"libvirtd.service", "machines"},
}

// Never tells why a unit is never frozen; "" where it may be. own are the units that
// the run and its caller live in.
func Never(unit string, own []string) string {
	if slices.Contains(own, unit) {
		return "the run, or who called it, lives in it"
	}
	for _, n := range never {
		// The patterns are constants: Match cannot fail.
		if ok, _ := path.Match(n.pattern, unit); ok {
			return n.why
		}
	}
	if suffix := path.Ext(unit); suffix != ".service" {
		return "only services are frozen, not a " + strings.TrimPrefix(suffix, ".")
	}
	return ""
}
