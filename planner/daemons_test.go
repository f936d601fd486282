package planner

import (
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/liveupd/liveupd/change"
)

// The table is data: what a mistake in it would make of a plan nobody sees.
func TestDaemonTable(t *testing.T) {
	seen := map[string]bool{}
	for _, d := range daemons {
		if len(d.units) == 0 || len(d.reload)+len(d.restart)+len(d.itself) == 0 {
			t.Errorf("an entry names no unit or no file: %+v", d)
			continue
		}
		for _, pattern := range d.units {
			if _, err := path.Match(pattern, ""); err != nil || !strings.HasSuffix(pattern, ".service") {
				t.Errorf("%q is no pattern of a service's name", pattern)
			}
			if seen[pattern] {
				t.Errorf("%s has two entries", pattern)
			}
			seen[pattern] = true
		}
		star := slices.ContainsFunc(d.units, func(u string) bool { return strings.Contains(u, "*") })
		for _, pattern := range slices.Concat(d.reload, d.restart, d.itself) {
			if strings.Contains(pattern, "%*") && !star || !path.IsAbs(pattern) || strings.Contains(strings.TrimSuffix(pattern, "/**"), "**") {
				t.Errorf("%s: %q is no pattern", d.units[0], pattern)
			}
			if _, err := path.Match(strings.TrimSuffix(pattern, "/**"), ""); err != nil {
				t.Errorf("%s: %q: %v", d.units[0], pattern, err)
			}
			if slices.ContainsFunc(readByOthers, func(other string) bool { return match(other, strings.TrimSuffix(pattern, "/**")) }) &&
				!strings.HasPrefix(pattern, "/etc/default/") && !strings.HasPrefix(pattern, "/etc/dbus-1/") &&
				!strings.HasPrefix(pattern, "/etc/systemd/") && !strings.HasPrefix(pattern, "/etc/udev/") {
				t.Errorf("%s: %q is also said to be read by others", d.units[0], pattern)
			}
		}
		if len(d.check) > 0 && !path.IsAbs(d.check[0]) || d.exec != "" && !path.IsAbs(d.exec) {
			t.Errorf("%s: a program without a path", d.units[0])
		}
	}
	t.Logf("%d entries, %d patterns of units", len(daemons), len(seen))
}

// What of a daemon's files a reload reads again, what needs a new start, and
// what the daemon looks at by itself.
func TestDaemons(t *testing.T) {
	for _, tt := range []struct {
		unit, text, file, want string
	}{
		{"nginx.service", nginxUnit, "/etc/nginx/sites-enabled/a", "reload"},
		{"nginx.service", "[Service]\nExecStart=/usr/sbin/nginx", "/etc/nginx/sites-enabled/a", "restart"},
		{"nginx.service", nginxUnit, "/etc/nginx/nginx.conf.dpkg-dist", ""},
		{"apache2.service", nginxUnit, "/etc/apache2/envvars", "restart"},
		{"apache2.service", nginxUnit, "/etc/apache2/mods-enabled/ssl.conf", "reload"},
		{"varnish.service", nginxUnit, "/etc/varnish/default.vcl", "reload"},
		{"varnish.service", nginxUnit, "/etc/varnish/secret", "restart"},
		{"traefik.service", "", "/etc/traefik/traefik.yml", "restart"},
		{"traefik.service", "", "/etc/traefik/dynamic/a.yml", ""},
		{"dnsmasq.service", nginxUnit, "/etc/dnsmasq.d/a", "restart"},
		{"mosquitto.service", nginxUnit, "/etc/mosquito/passwd", "reload"},
		{"mosquitto.service", nginxUnit, "/etc/mosquito/conf.d/a.conf", "restart"},
		{"mariadb.service", nginxUnit, "/etc/mysql/mariadb.conf.d/50-server.cnf", "restart"},
		{"postgresql@16-main.service", nginxUnit, "/etc/postgresql/16/main/pg_hba.conf", "reload"},
		{"postgresql@16-main.service", nginxUnit, "/etc/postgresql/16/main/environment", "restart"},
		{"postgresql@16-main.service", nginxUnit, "/etc/postgresql/15/main/pg_hba.conf", ""},
		{"kea-dhcp4-server.service", nginxUnit, "/etc/kea/kea-dhcp4.conf", "reload"},
		{"kea-dhcp6-server.service", nginxUnit, "/etc/kea/kea-dhcp4.conf", ""},
		{"openvpn-server@a.service", "", "/etc/openvpn/server/a.conf", "restart"},
		{"openvpn-server@a.service", "", "/etc/openvpn/server/b.conf", ""},
		{"prometheus.service", nginxUnit, "/etc/prometheus/prometheus.yml", "reload"},
		{"prometheus.service", nginxUnit, "/etc/prometheus/blackbox.yml", ""},
		{"prometheus-alertmanager.service", nginxUnit, "/etc/prometheus/alertmanager.yml", "reload"},
		{"avahi-daemon.service", nginxUnit, "/etc/avahi/services/ssh.service", ""},
		{"avahi-daemon.service", nginxUnit, "/etc/avahi/avahi-daemon.conf", "restart"},
		{"gitlab-runner.service", "", "/etc/gitlab-runner/config.toml", ""},
		{"systemd-networkd.service", "[Service]\nType=notify-reload\nExecStart=x", "/etc/systemd/network/a.network", "reload"},
		{"systemd-networkd.service", "[Service]\nType=notify-reload\nExecStart=x", "/etc/systemd/network/a.link", ""},
		{"systemd-networkd.service", "[Service]\nType=notify-reload\nExecStart=x", "/etc/systemd/networkd.conf", "restart"},
		{"systemd-logind.service", "[Service]\nType=notify-reload\nExecStart=x", "/etc/systemd/logind.conf.d/a.conf", "reload"},
		{"systemd-logind.service", "", "/etc/systemd/logind.conf", "restart"},
		{"systemd-journald.service", "", "/usr/lib/systemd/journald.conf.d/a.conf", "restart"},
		{"cron.service", nginxUnit, "/etc/crontab", ""},
		{"cron.service", nginxUnit, "/etc/cron.daily/x", ""},

		{"app.service", "[Service]\nExecStart=/opt/app -c /etc/app.conf", "/etc/app.conf", "restart"},
		{"app.service", "[Service]\nExecStart=/opt/app --config=/etc/app.conf\nExecReload=x", "/etc/app.conf", "reload"},
		{"app.service", "[Service]\nExecStart=/opt/app --dir /etc/app.d/", "/etc/app.d/10-a.conf", "restart"},
		{"app@x.service", "[Service]\nExecStart=/opt/app /etc/app/%i.conf", "/etc/app/x.conf", "restart"},
		{"app@x.service", "[Service]\nExecStart=/opt/app /etc/app/%i.conf", "/etc/app/y.conf", ""},
		{"app.service", "[Service]\nExecStart=/opt/app --root /usr/share/www", "/usr/share/www/index.html", ""},
		{"app.service", "[Service]\nExecStart=/opt/app --state /var/lib/app.db", "/var/lib/app.db", ""},
		{"app.service", "[Service]\nExecStart=/opt/app\nExecStop=/opt/stop /etc/app.conf", "/etc/app.conf", ""},
		{"old.service", "SourcePath=/etc/init.d/old\n[Service]\nExecStart=/etc/init.d/old start", "/etc/default/old", "restart"},
		{"old.service", "SourcePath=/etc/init.d/old\n[Service]\nExecStart=/etc/init.d/old start", "/etc/default/other", ""},
	} {
		s := machine().replace(tt.file)
		s.unit(tt.unit, tt.text)
		got := ""
		for _, u := range Make(s.in).Units {
			if u.Unit == tt.unit {
				got = u.Action.String()
			}
		}
		if got != tt.want {
			t.Errorf("%s with %s changed: %q; want %q", tt.unit, tt.file, got, tt.want)
		}
	}
}

// A reload that a oneshot has is done; a restart it has to ask for.
func TestRulesOfFirewall(t *testing.T) {
	s := machine().replace("/etc/nftables.conf")
	st := s.unit("nftables.service", "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/usr/sbin/nft -f /etc/nftables.conf\nExecReload=/usr/sbin/nft -f /etc/nftables.conf",
		change.Use{Path: "/usr/sbin/nft", Kind: "exec"})
	st.SubState = "exited"
	if got, want := summary(Make(s.in)), "reload nftables.service, check /usr/sbin/nft -c -f /etc/nftables.conf"; got != want {
		t.Errorf("Make() = %s; want %s", got, want)
	}
}
