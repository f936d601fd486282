package planner

import (
	"path"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// daemon is what is known of one program: which files it reads at its start,
// whether its reload reads them again, and what tells if they are sound.
//
// In files and check, %I is the instance of the unit, unescaped, and %* what
// the first star of the unit's pattern stood for.
type daemon struct {
	units  []string // names or path.Match patterns
	exec   string   // known by this program too, under any unit name
	files  []string // as changes.matching has them
	reload bool     // a reload is enough, where the unit has one
	check  []string // argv; the program's usual path first
}

// The table holds only what each program's manual says. A daemon that reads
// its files whenever it needs them (cron, sudo, udev's rules, PAM) is not in
// it: there is nothing to do for it.
var daemons = []daemon{
	{
		units: []string{"nginx.service"}, exec: "/usr/sbin/nginx", files: []string{"/etc/nginx/**"},
		reload: true, check: []string{"/usr/sbin/nginx", "-t", "-q"},
	},
	{
		units: []string{"ssh.service", "sshd.service"}, exec: "/usr/sbin/sshd",
		files:  []string{"/etc/ssh/sshd_config", "/etc/ssh/sshd_config.d/*.conf"},
		reload: true, check: []string{"/usr/sbin/sshd", "-t"},
	},
	{
		units: []string{"apache2.service"}, exec: "/usr/sbin/apache2", files: []string{"/etc/apache2/**"},
		reload: true, check: []string{"/usr/sbin/apache2ctl", "-t"},
	},
	{
		units: []string{"httpd.service"}, exec: "/usr/sbin/httpd", files: []string{"/etc/httpd/**"},
		reload: true, check: []string{"/usr/sbin/httpd", "-t"},
	},
	{
		units: []string{"lighttpd.service"}, exec: "/usr/sbin/lighttpd", files: []string{"/etc/lighttpd/**"},
		reload: true, check: []string{"/usr/sbin/lighttpd", "-tt", "-f", "/etc/lighttpd/lighttpd.conf"},
	},
	{
		units: []string{"caddy.service"}, exec: "/usr/bin/caddy", files: []string{"/etc/caddy/**"},
		reload: true, check: []string{"/usr/bin/caddy", "validate", "--config", "/etc/caddy/Caddyfile"},
	},
	{
		units: []string{"haproxy.service"}, exec: "/usr/sbin/haproxy", files: []string{"/etc/haproxy/**"},
		reload: true, check: []string{"/usr/sbin/haproxy", "-c", "-q", "-f", "/etc/haproxy/haproxy.cfg"},
	},
	{
		units: []string{"keepalived.service"}, exec: "/usr/sbin/keepalived", files: []string{"/etc/keepalived/**"},
		reload: true, check: []string{"/usr/sbin/keepalived", "-t"},
	},
	{
		units: []string{"squid.service"}, exec: "/usr/sbin/squid", files: []string{"/etc/squid/**"},
		reload: true, check: []string{"/usr/sbin/squid", "-k", "parse"},
	},
	{
		units: []string{"php*-fpm.service"}, files: []string{"/etc/php/%*/fpm/**", "/etc/php/%*/mods-available/**"},
		reload: true, check: []string{"/usr/sbin/php-fpm%*", "-t"},
	},
	{
		units: []string{"postfix.service", "postfix@*.service"}, files: []string{"/etc/postfix/**"},
		reload: true, check: []string{"/usr/sbin/postfix", "check"},
	},
	{units: []string{"exim4.service"}, files: []string{"/etc/exim4/**"}},
	{
		units: []string{"dovecot.service"}, files: []string{"/etc/dovecot/**"},
		reload: true, check: []string{"/usr/bin/doveconf", "-n"},
	},
	{
		units: []string{"named.service", "bind9.service"}, exec: "/usr/sbin/named", files: []string{"/etc/bind/**", "/etc/named.conf"},
		reload: true, check: []string{"/usr/bin/named-checkconf"},
	},
	{
		units: []string{"unbound.service"}, exec: "/usr/sbin/unbound", files: []string{"/etc/unbound/**"},
		reload: true, check: []string{"/usr/sbin/unbound-checkconf"},
	},
	{
		// SIGHUP reads hosts and leases again, never dnsmasq.conf (dnsmasq(8)).
		units: []string{"dnsmasq.service"}, exec: "/usr/sbin/dnsmasq", files: []string{"/etc/dnsmasq.conf", "/etc/dnsmasq.d/**"},
		check: []string{"/usr/sbin/dnsmasq", "--test"},
	},
	{units: []string{"chrony.service", "chronyd.service"}, files: []string{"/etc/chrony/**", "/etc/chrony.conf"}},
	{units: []string{"ntpsec.service", "ntp.service", "ntpd.service"}, files: []string{"/etc/ntpsec/ntp.conf", "/etc/ntpsec/ntp.d/**", "/etc/ntp.conf"}},
	{
		units: []string{"rsyslog.service"}, exec: "/usr/sbin/rsyslogd", files: []string{"/etc/rsyslog.conf", "/etc/rsyslog.d/*.conf"},
		check: []string{"/usr/sbin/rsyslogd", "-N1"},
	},
	{units: []string{"postgresql@*.service"}, files: []string{"/etc/postgresql/%I/**"}, reload: true},
	{units: []string{"mariadb.service", "mysql.service", "mysqld.service"}, files: []string{"/etc/mysql/**"}},
	{units: []string{"redis-server.service", "redis.service"}, files: []string{"/etc/redis/**"}},
	{
		units: []string{"smbd.service", "nmbd.service", "winbind.service"}, files: []string{"/etc/samba/**"},
		reload: true, check: []string{"/usr/bin/testparm", "-s"},
	},
	{
		units: []string{"nfs-server.service", "nfs-kernel-server.service"},
		files: []string{"/etc/exports", "/etc/exports.d/*.exports"}, reload: true,
	},
	{
		units: []string{"fail2ban.service"}, files: []string{"/etc/fail2ban/**"},
		reload: true, check: []string{"/usr/bin/fail2ban-client", "-t"},
	},
	{
		units: []string{"prometheus.service"}, files: []string{"/etc/prometheus/**"},
		reload: true, check: []string{"/usr/bin/promtool", "check", "config", "/etc/prometheus/prometheus.yml"},
	},
	{
		units: []string{"isc-dhcp-server.service"}, files: []string{"/etc/dhcp/dhcpd.conf"},
		check: []string{"/usr/sbin/dhcpd", "-t"},
	},
	{
		units: []string{"docker.service"}, files: []string{"/etc/docker/daemon.json"},
		check: []string{"/usr/bin/dockerd", "--validate"},
	},
	{units: []string{"containerd.service"}, files: []string{"/etc/containerd/**"}},
	{
		// The session bus of each user reads session.d and services by itself.
		units: []string{"dbus.service", "dbus-broker.service"},
		files: []string{
			"/etc/dbus-1/system.conf", "/etc/dbus-1/system-local.conf", "/etc/dbus-1/system.d/**",
			"/usr/share/dbus-1/system.conf", "/usr/share/dbus-1/system.d/**", "/usr/share/dbus-1/system-services/**",
		},
		reload: true,
	},
	{units: []string{"systemd-journald.service"}, files: systemdConf("journald")},
	{units: []string{"systemd-logind.service"}, files: systemdConf("logind")},
	{units: []string{"systemd-resolved.service"}, files: systemdConf("resolved")},
	{units: []string{"systemd-timesyncd.service"}, files: systemdConf("timesyncd")},
	{units: []string{"systemd-oomd.service"}, files: systemdConf("oomd")},
	{units: []string{"systemd-networkd.service"}, files: systemdConf("networkd")},
	{
		units:  []string{"systemd-networkd.service"},
		files:  []string{"/etc/systemd/network/**", "/usr/lib/systemd/network/**"},
		reload: true,
	},
	{units: []string{"systemd-udevd.service"}, files: []string{"/etc/udev/udev.conf", "/etc/udev/udev.conf.d/*.conf"}},
}

func systemdConf(name string) []string {
	return []string{
		"/etc/systemd/" + name + ".conf", "/etc/systemd/" + name + ".conf.d/*.conf",
		"/usr/lib/systemd/" + name + ".conf", "/usr/lib/systemd/" + name + ".conf.d/*.conf",
	}
}

// noUnit are files that no daemon holds, and that can lock everybody out.
var noUnit = []daemon{
	{files: []string{"/etc/sudoers", "/etc/sudoers.d/*"}, check: []string{"/usr/sbin/visudo", "-c"}},
}

// readByOthers are files in a package's own configuration that its daemon
// does not read: other programs do, at their own time.
var readByOthers = []string{
	"/etc/init.d/**", "/etc/rc*.d/**", "/etc/cron.d/**", "/etc/cron.*/**", "/etc/logrotate.d/**", "/etc/pam.d/**",
	"/etc/apparmor.d/**", "/etc/bash_completion.d/**", "/etc/default/**", "/etc/sysctl.d/**", "/etc/tmpfiles.d/**",
	"/etc/modprobe.d/**", "/etc/modules-load.d/**", "/etc/udev/**", "/etc/systemd/**", "/etc/ufw/**", "/etc/xdg/**",
	"/etc/profile.d/**", "/etc/insserv.conf.d/**", "/etc/polkit-1/**", "/etc/dbus-1/**", "/etc/network/**",
	"/etc/sudoers.d/**", "/etc/ld.so.conf.d/**", "/etc/reportbug/**", "/etc/lintian/**", "/etc/X11/**", "/etc/apt/**",
	"/etc/dhcp/dhclient-*.d/**", "/etc/resolvconf/**", "/etc/ppp/**", "/etc/needrestart/**", "/etc/emacs/**",
}

// knows finds the table's entries for a unit, and what the star stood for.
func (d *daemon) knows(u *unit) (star string, ok bool) {
	names := []string{u.name}
	if u.state != nil {
		names = append(names, u.state.Names...)
	}
	for _, pattern := range d.units {
		for _, name := range names {
			if ok, err := path.Match(pattern, name); err != nil || !ok {
				continue
			}
			if before, after, found := strings.Cut(pattern, "*"); found {
				star = strings.TrimSuffix(strings.TrimPrefix(name, before), after)
			}
			return star, true
		}
	}
	if d.exec == "" || len(d.units) > 0 && u.definition() == nil {
		return "", false
	}
	return "", slices.ContainsFunc(u.definition().Uses, func(use change.Use) bool {
		return use.Kind == "exec" && use.Path == d.exec
	})
}

// configuration is step 5 of the package comment.
func (p *planning) configuration() {
	p.each(func(u *unit) {
		known := false
		for i := range daemons {
			d := &daemons[i]
			star, ok := d.knows(u)
			if !ok {
				continue
			}
			known = true
			for _, pattern := range d.files {
				pattern = expand(strings.ReplaceAll(pattern, "%*", star), u.name)
				for _, e := range p.changed.matching(pattern) {
					p.config(u, e.Path, d.reload, "")
					p.validate(u, d, star, e.Path)
				}
			}
		}
		for _, pattern := range u.watched() {
			for _, e := range p.changed.matching(pattern) {
				p.config(u, e.Path, true, "declared by the unit")
			}
		}
		p.owned(u, known)
	})
	for i := range noUnit {
		for _, pattern := range noUnit[i].files {
			for _, e := range p.changed.matching(pattern) {
				p.checks = append(p.checks, change.Check{Argv: noUnit[i].check, Path: e.Path})
			}
		}
	}
}

func (p *planning) config(u *unit, file string, reload bool, detail string) {
	rung := change.ActionRestart
	if reload && u.canReload() {
		rung = change.ActionReload
	}
	p.raise(u, rung, change.Reason{Kind: "config", Path: file, Detail: detail})
}

// owned are configuration files that the trees attribute to the unit: those
// that it declares, and those of its package where the table does not know
// the daemon better.
func (p *planning) owned(u *unit, known bool) {
	for _, def := range []*change.Unit{u.old, u.new} {
		if def == nil {
			continue
		}
		for _, use := range def.Uses {
			if use.Kind != "config" || !p.changed.at(use.Path) || leftBeside(use.Path) ||
				directory(p.changed.byPath[use.Path]) {
				continue
			}
			if !strings.HasPrefix(use.Via, "package ") {
				p.config(u, use.Path, true, "declared by the unit")
				continue
			}
			if known || isData(use.Path) ||
				slices.ContainsFunc(readByOthers, func(pattern string) bool { return match(pattern, use.Path) }) {
				continue
			}
			p.config(u, use.Path, true, "of its "+use.Via)
		}
	}
}

// validate asks for the daemon's own word on its files. The program is the
// one that the unit runs, where it is the same.
func (p *planning) validate(u *unit, d *daemon, star, file string) {
	if len(d.check) == 0 {
		return
	}
	argv := make([]string, len(d.check))
	for i, a := range d.check {
		argv[i] = strings.ReplaceAll(a, "%*", star)
	}
	if def := u.definition(); def != nil {
		for _, use := range def.Uses {
			if use.Kind == "exec" && path.Base(use.Path) == path.Base(argv[0]) {
				argv[0] = use.Path
				break
			}
		}
	}
	p.checks = append(p.checks, change.Check{Unit: u.name, Argv: argv, Path: file})
}

// collectChecks adds what the units themselves ask for, and keeps each
// command once, with the first path that calls for it.
func (p *planning) collectChecks() {
	for name, v := range p.verdicts {
		u := p.running[name]
		var def *change.Unit
		if u != nil {
			def = u.definition()
		} else if v.start {
			def = lookup(p.in.New, name)
		}
		if def == nil || v.stop || v.propagated || v.deferred {
			continue
		}
		for _, s := range def.Settings {
			if s.Key != "X-Liveupd-Check" {
				continue
			}
			if argv := splitArgv(expand(s.Value, name)); len(argv) > 0 {
				p.checks = append(p.checks, change.Check{Unit: name, Argv: argv, Path: firstPath(v.reasons, s.File)})
			}
		}
	}
	slices.SortFunc(p.checks, func(a, b change.Check) int {
		if c := strings.Compare(a.Unit, b.Unit); c != 0 {
			return c
		}
		if c := slices.Compare(a.Argv, b.Argv); c != 0 {
			return c
		}
		return strings.Compare(a.Path, b.Path)
	})
	seen := map[string]bool{}
	p.checks = slices.DeleteFunc(p.checks, func(c change.Check) bool {
		key := strings.Join(c.Argv, "\x00")
		twice := seen[key]
		seen[key] = true
		return twice
	})
}

func firstPath(reasons []change.Reason, otherwise string) string {
	for _, r := range tidyReasons(reasons) {
		if r.Path != "" {
			return r.Path
		}
	}
	return otherwise
}
