package planner

// daemon is what is known of one program: which files it reads, whether its
// reload reads them again, and what tells if they are sound.
//
// In all of them %I is the instance of the unit, unescaped, and %* what the
// first star of the unit's pattern stood for.
type daemon struct {
	units   []string // names or path.Match patterns
	exec    string   // known by this program too, under any unit name
	reload  []string // as changes.matching has them: a reload reads these again, where the unit has one
	restart []string // read at the start alone; they count before those of reload
	itself  []string // the daemon looks at these by itself, or each time anew: nothing is to be done
	check   []string // argv; the program's usual path first
}

// The table holds only what each program's manual says. A daemon that reads
// all its files whenever it needs them (cron, sudo, PAM) is not in it: there
// is nothing to do for it. What a unit names itself, as EnvironmentFile= in
// /etc/default, is not repeated here.
var daemons = []daemon{
	// Web servers and proxies.
	{
		units: []string{"nginx.service"}, exec: "/usr/sbin/nginx", reload: []string{"/etc/nginx/**"},
		check: []string{"/usr/sbin/nginx", "-t", "-q"},
	},
	{
		units: []string{"apache2.service", "apache2@*.service"}, exec: "/usr/sbin/apache2", reload: []string{"/etc/apache2/**"},
		restart: []string{"/etc/apache2/envvars"}, check: []string{"/usr/sbin/apache2ctl", "-t"},
	},
	{
		units: []string{"httpd.service"}, exec: "/usr/sbin/httpd", reload: []string{"/etc/httpd/**"},
		check: []string{"/usr/sbin/httpd", "-t"},
	},
	{
		units: []string{"lighttpd.service"}, exec: "/usr/sbin/lighttpd", reload: []string{"/etc/lighttpd/**"},
		check: []string{"/usr/sbin/lighttpd", "-tt", "-f", "/etc/lighttpd/lighttpd.conf"},
	},
	{
		units: []string{"caddy.service"}, exec: "/usr/bin/caddy", reload: []string{"/etc/caddy/**"},
		check: []string{"/usr/bin/caddy", "validate", "--config", "/etc/caddy/Caddyfile"},
	},
	{
		units: []string{"haproxy.service"}, exec: "/usr/sbin/haproxy", reload: []string{"/etc/haproxy/**"},
		check: []string{"/usr/sbin/haproxy", "-c", "-q", "-f", "/etc/haproxy/haproxy.cfg"},
	},
	{
		// Its reload compiles and switches the VCL alone.
		units: []string{"varnish.service"}, exec: "/usr/sbin/varnishd", reload: []string{"/etc/varnish/*.vcl", "/etc/varnish/*/**"},
		restart: []string{"/etc/varnish/secret"}, check: []string{"/usr/sbin/varnishd", "-C", "-f", "/etc/varnish/default.vcl"},
	},
	{
		units: []string{"squid.service"}, exec: "/usr/sbin/squid", reload: []string{"/etc/squid/**"},
		check: []string{"/usr/sbin/squid", "-k", "parse"},
	},
	{
		// The dynamic configuration is watched.
		units: []string{"traefik.service"}, restart: []string{"/etc/traefik/traefik.*"}, itself: []string{"/etc/traefik/**"},
	},
	{
		units: []string{"php*-fpm.service"}, reload: []string{"/etc/php/%*/fpm/**", "/etc/php/%*/mods-available/**"},
		check: []string{"/usr/sbin/php-fpm%*", "-t"},
	},
	{units: []string{"tomcat*.service"}, restart: []string{"/etc/tomcat%*/**", "/etc/default/tomcat%*"}},
	{units: []string{"stunnel4.service", "stunnel@*.service"}, reload: []string{"/etc/stunnel/**"}},
	{units: []string{"sslh.service"}, restart: []string{"/etc/sslh.cfg", "/etc/sslh/**"}},
	{units: []string{"uwsgi.service"}, restart: []string{"/etc/uwsgi/**", "/etc/default/uwsgi"}},

	// Mail and chat.
	{
		units: []string{"postfix.service", "postfix@*.service"}, reload: []string{"/etc/postfix/**"},
		check: []string{"/usr/sbin/postfix", "check"},
	},
	{
		// The file that is read is made of these when the unit starts.
		units: []string{"exim4.service"}, restart: []string{"/etc/exim4/**", "/etc/default/exim4"},
		check: []string{"/usr/sbin/exim4", "-bV"},
	},
	{
		units: []string{"dovecot.service"}, reload: []string{"/etc/dovecot/**"},
		check: []string{"/usr/bin/doveconf", "-n"},
	},
	{units: []string{"rspamd.service"}, reload: []string{"/etc/rspamd/**"}, check: []string{"/usr/bin/rspamadm", "configtest"}},
	{units: []string{"spamd.service", "spamassassin.service"}, reload: []string{"/etc/spamassassin/**"}, check: []string{"/usr/bin/spamassassin", "--lint"}},
	{units: []string{"opendkim.service"}, restart: []string{"/etc/opendkim.conf", "/etc/opendkim/**"}},
	{units: []string{"opendmarc.service"}, restart: []string{"/etc/opendmarc.conf"}},
	{units: []string{"amavis.service"}, restart: []string{"/etc/amavis/**"}},
	{units: []string{"clamav-daemon.service"}, restart: []string{"/etc/clamav/clamd.conf"}},
	{units: []string{"clamav-freshclam.service"}, restart: []string{"/etc/clamav/freshclam.conf"}},
	{units: []string{"prosody.service"}, reload: []string{"/etc/prosody/**"}, check: []string{"/usr/bin/prosodyctl", "check", "config"}},
	{units: []string{"ejabberd.service"}, reload: []string{"/etc/ejabberd/ejabberd.yml"}, restart: []string{"/etc/ejabberd/ejabberdctl.cfg"}},
	{units: []string{"matrix-synapse.service"}, restart: []string{"/etc/matrix-synapse/**"}},

	// Names, time, addresses.
	{
		units: []string{"named.service", "bind9.service"}, exec: "/usr/sbin/named", reload: []string{"/etc/bind/**", "/etc/named.conf"},
		check: []string{"/usr/bin/named-checkconf"},
	},
	{
		units: []string{"unbound.service"}, exec: "/usr/sbin/unbound", reload: []string{"/etc/unbound/**"},
		check: []string{"/usr/sbin/unbound-checkconf"},
	},
	{
		// SIGHUP reads hosts and leases again, never dnsmasq.conf (dnsmasq(8)).
		units: []string{"dnsmasq.service", "dnsmasq@*.service"}, exec: "/usr/sbin/dnsmasq", restart: []string{"/etc/dnsmasq.conf", "/etc/dnsmasq.d/**"},
		check: []string{"/usr/sbin/dnsmasq", "--test"},
	},
	{units: []string{"knot.service"}, reload: []string{"/etc/knot/**"}, check: []string{"/usr/sbin/knotc", "conf-check"}},
	{units: []string{"nsd.service"}, reload: []string{"/etc/nsd/**"}, check: []string{"/usr/sbin/nsd-checkconf", "/etc/nsd/nsd.conf"}},
	{units: []string{"pdns.service", "pdns-recursor.service"}, restart: []string{"/etc/powerdns/**"}},
	{
		units: []string{"chrony.service", "chronyd.service"}, restart: []string{"/etc/chrony/**", "/etc/chrony.conf", "/etc/chrony.keys"},
		check: []string{"/usr/sbin/chronyd", "-p"},
	},
	{
		units:   []string{"ntpsec.service", "ntp.service", "ntpd.service"},
		restart: []string{"/etc/ntpsec/ntp.conf", "/etc/ntpsec/ntp.d/**", "/etc/ntp.conf"},
	},
	{
		units: []string{"isc-dhcp-server.service"}, restart: []string{"/etc/dhcp/dhcpd.conf", "/etc/dhcp/dhcpd6.conf"},
		check: []string{"/usr/sbin/dhcpd", "-t"},
	},
	{units: []string{"kea-*-server.service"}, reload: []string{"/etc/kea/kea-%*.conf"}, check: []string{"/usr/sbin/kea-%*", "-t", "/etc/kea/kea-%*.conf"}},
	{units: []string{"radvd.service"}, reload: []string{"/etc/radvd.conf"}, check: []string{"/usr/sbin/radvd", "-c", "-C", "/etc/radvd.conf"}},
	{
		// Services and hosts are watched; its reload is for those alone.
		units: []string{"avahi-daemon.service"}, restart: []string{"/etc/avahi/avahi-daemon.conf"}, itself: []string{"/etc/avahi/**"},
	},

	// The network.
	{
		units: []string{"ssh.service", "sshd.service"}, exec: "/usr/sbin/sshd",
		reload: []string{"/etc/ssh/sshd_config", "/etc/ssh/sshd_config.d/*.conf"}, check: []string{"/usr/sbin/sshd", "-t"},
	},
	{
		units: []string{"keepalived.service"}, exec: "/usr/sbin/keepalived", reload: []string{"/etc/keepalived/**"},
		check: []string{"/usr/sbin/keepalived", "-t"},
	},
	{
		units: []string{"frr.service"}, reload: []string{"/etc/frr/**"}, restart: []string{"/etc/frr/daemons"},
		check: []string{"/usr/bin/vtysh", "-C", "-f", "/etc/frr/frr.conf"},
	},
	{units: []string{"bird.service"}, reload: []string{"/etc/bird/**"}, check: []string{"/usr/sbin/bird", "-p"}},
	{units: []string{"openvpn@*.service"}, reload: []string{"/etc/openvpn/%I.conf"}},
	{units: []string{"openvpn-server@*.service"}, restart: []string{"/etc/openvpn/server/%I.conf"}},
	{units: []string{"openvpn-client@*.service"}, restart: []string{"/etc/openvpn/client/%I.conf"}},
	{units: []string{"wg-quick@*.service"}, reload: []string{"/etc/wireguard/%I.conf"}},
	{units: []string{"strongswan.service"}, reload: []string{"/etc/swanctl/**"}, restart: []string{"/etc/strongswan.conf", "/etc/strongswan.d/**"}},
	{
		units: []string{"strongswan-starter.service"}, reload: []string{"/etc/ipsec.conf", "/etc/ipsec.secrets", "/etc/ipsec.d/**"},
		restart: []string{"/etc/strongswan.conf", "/etc/strongswan.d/**"},
	},
	{units: []string{"nftables.service"}, reload: []string{"/etc/nftables.conf", "/etc/nftables.d/**"}, check: []string{"/usr/sbin/nft", "-c", "-f", "/etc/nftables.conf"}},
	{units: []string{"ufw.service"}, reload: []string{"/etc/ufw/**", "/etc/default/ufw"}},
	{units: []string{"firewalld.service"}, reload: []string{"/etc/firewalld/**"}, check: []string{"/usr/bin/firewall-offline-cmd", "--check-config"}},
	{units: []string{"netfilter-persistent.service"}, reload: []string{"/etc/iptables/**"}},
	{
		units:  []string{"NetworkManager.service"},
		reload: []string{"/etc/NetworkManager/NetworkManager.conf", "/etc/NetworkManager/conf.d/*.conf", "/usr/lib/NetworkManager/conf.d/*.conf"},
		itself: []string{"/etc/NetworkManager/dispatcher.d/**"},
	},
	{units: []string{"wpa_supplicant.service", "wpa_supplicant@*.service"}, reload: []string{"/etc/wpa_supplicant/**"}},
	{units: []string{"hostapd.service", "hostapd@*.service"}, reload: []string{"/etc/hostapd/**"}},
	{units: []string{"bluetooth.service"}, restart: []string{"/etc/bluetooth/*.conf"}},
	{units: []string{"freeradius.service"}, restart: []string{"/etc/freeradius/**"}, check: []string{"/usr/sbin/freeradius", "-XC"}},
	{units: []string{"coturn.service"}, restart: []string{"/etc/turnserver.conf"}},
	{units: []string{"lldpd.service"}, restart: []string{"/etc/lldpd.conf", "/etc/lldpd.d/**"}},
	{units: []string{"openbsd-inetd.service", "inetutils-inetd.service", "inetd.service"}, reload: []string{"/etc/inetd.conf", "/etc/inetd.d/**"}},
	{units: []string{"xinetd.service"}, reload: []string{"/etc/xinetd.conf", "/etc/xinetd.d/**"}},
	{
		units: []string{"tor@*.service"}, reload: []string{"/etc/tor/**"},
		check: []string{"/usr/bin/tor", "--defaults-torrc", "/usr/share/tor/tor-service-defaults-torrc", "-f", "/etc/tor/torrc", "--RunAsDaemon", "0", "--verify-config"},
	},

	// Data.
	{units: []string{"postgresql@*.service"}, reload: []string{"/etc/postgresql/%I/**"}, restart: []string{"/etc/postgresql/%I/environment", "/etc/postgresql/%I/pg_ctl.conf"}},
	{units: []string{"pgbouncer.service"}, reload: []string{"/etc/pgbouncer/**"}},
	{units: []string{"mariadb.service", "mariadb@*.service", "mysql.service", "mysqld.service"}, restart: []string{"/etc/mysql/**", "/etc/my.cnf", "/etc/my.cnf.d/**"}},
	{units: []string{"redis-server.service", "redis-server@*.service", "redis.service", "redis-sentinel.service"}, restart: []string{"/etc/redis/**"}},
	{units: []string{"valkey-server.service", "valkey.service"}, restart: []string{"/etc/valkey/**"}},
	{units: []string{"memcached.service"}, restart: []string{"/etc/memcached.conf"}},
	{units: []string{"mongod.service", "mongodb.service"}, restart: []string{"/etc/mongod.conf", "/etc/mongodb.conf"}},
	{units: []string{"elasticsearch.service"}, restart: []string{"/etc/elasticsearch/**"}},
	{units: []string{"opensearch.service"}, restart: []string{"/etc/opensearch/**"}},
	{units: []string{"rabbitmq-server.service"}, restart: []string{"/etc/rabbitmq/**"}},
	{
		// SIGHUP reads no listener again (mosquito(8)).
		units: []string{"mosquitto.service"}, restart: []string{"/etc/mosquito/mosquitto.conf", "/etc/mosquito/conf.d/**"},
		reload: []string{"/etc/mosquito/**"},
	},
	{units: []string{"influxdb.service"}, restart: []string{"/etc/influxdb/**"}},
	{units: []string{"slapd.service"}, restart: []string{"/etc/ldap/slapd.conf", "/etc/ldap/slapd.d/**", "/etc/default/slapd"}, check: []string{"/usr/sbin/slaptest", "-u"}},
	{units: []string{"sssd.service"}, restart: []string{"/etc/sssd/**"}, check: []string{"/usr/sbin/sssctl", "config-check"}},
	{units: []string{"nscd.service"}, restart: []string{"/etc/nscd.conf"}},
	{units: []string{"nslcd.service"}, restart: []string{"/etc/nslcd.conf"}},

	// Files and printers.
	{
		units: []string{"smbd.service", "nmbd.service", "winbind.service"}, reload: []string{"/etc/samba/**"},
		check: []string{"/usr/bin/testparm", "-s"},
	},
	{units: []string{"samba-ad-dc.service"}, restart: []string{"/etc/samba/**"}, check: []string{"/usr/bin/testparm", "-s"}},
	{
		units:  []string{"nfs-server.service", "nfs-kernel-server.service"},
		reload: []string{"/etc/exports", "/etc/exports.d/*.exports"}, restart: []string{"/etc/nfs.conf", "/etc/nfs.conf.d/*.conf"},
	},
	{units: []string{"nfs-idmapd.service"}, restart: []string{"/etc/idmapd.conf"}},
	{units: []string{"vsftpd.service"}, restart: []string{"/etc/vsftpd.conf", "/etc/vsftpd/**"}},
	{units: []string{"proftpd.service"}, reload: []string{"/etc/proftpd/**"}, check: []string{"/usr/sbin/proftpd", "-t"}},
	{
		// The others in its folder it writes itself.
		units: []string{"cups.service"}, restart: []string{"/etc/cups/cupsd.conf", "/etc/cups/cups-files.conf"}, itself: []string{"/etc/cups/**"},
		check: []string{"/usr/sbin/cupsd", "-t"},
	},
	{units: []string{"multipathd.service"}, reload: []string{"/etc/multipath.conf", "/etc/multipath/conf.d/*.conf"}},
	{units: []string{"smartmontools.service", "smartd.service"}, reload: []string{"/etc/smartd.conf"}},
	{units: []string{"mdmonitor.service"}, restart: []string{"/etc/mdadm/mdadm.conf", "/etc/mdadm.conf"}},
	{units: []string{"udisks2.service"}, restart: []string{"/etc/udisks2/**"}},

	// Logs and watching.
	{
		// SIGHUP opens its files anew, and reads no configuration (rsyslogd(8)).
		units: []string{"rsyslog.service"}, exec: "/usr/sbin/rsyslogd", restart: []string{"/etc/rsyslog.conf", "/etc/rsyslog.d/*.conf"},
		check: []string{"/usr/sbin/rsyslogd", "-N1"},
	},
	{units: []string{"syslog-ng.service"}, reload: []string{"/etc/syslog-ng/**"}, check: []string{"/usr/sbin/syslog-ng", "--syntax-only"}},
	{units: []string{"auditd.service"}, reload: []string{"/etc/audit/auditd.conf"}},
	{units: []string{"fail2ban.service"}, reload: []string{"/etc/fail2ban/**"}, check: []string{"/usr/bin/fail2ban-client", "-t"}},
	{
		units: []string{"prometheus.service"}, reload: []string{"/etc/prometheus/prometheus.yml", "/etc/prometheus/*.rules*", "/etc/prometheus/rules*/**", "/etc/prometheus/*_rules.yml"},
		itself: []string{"/etc/prometheus/**"}, check: []string{"/usr/bin/promtool", "check", "config", "/etc/prometheus/prometheus.yml"},
	},
	{
		units: []string{"prometheus-alertmanager.service"}, reload: []string{"/etc/prometheus/alertmanager.yml", "/etc/prometheus/alertmanager_templates/**"},
		check: []string{"/usr/bin/amtool", "check-config", "/etc/prometheus/alertmanager.yml"},
	},
	{units: []string{"prometheus-blackbox-exporter.service"}, reload: []string{"/etc/prometheus/blackbox.yml"}},
	{units: []string{"prometheus-snmp-exporter.service"}, reload: []string{"/etc/prometheus/snmp.yml"}},
	{units: []string{"grafana-server.service", "grafana.service"}, restart: []string{"/etc/grafana/**"}},
	{units: []string{"loki.service"}, restart: []string{"/etc/loki/**"}},
	{units: []string{"promtail.service"}, restart: []string{"/etc/promtail/**"}},
	{units: []string{"telegraf.service"}, reload: []string{"/etc/telegraf/**"}},
	{units: []string{"collectd.service"}, restart: []string{"/etc/collectd/**"}, check: []string{"/usr/sbin/collectd", "-t"}},
	{units: []string{"snmpd.service"}, reload: []string{"/etc/snmp/snmpd.conf", "/etc/snmp/snmpd.conf.d/**"}},
	{units: []string{"snmptrapd.service"}, reload: []string{"/etc/snmp/snmptrapd.conf", "/etc/snmp/snmptrapd.conf.d/**"}},
	{units: []string{"zabbix-agent.service"}, restart: []string{"/etc/zabbix/zabbix_agentd.conf", "/etc/zabbix/zabbix_agentd.conf.d/**", "/etc/zabbix/zabbix_agentd.d/**"}},
	{units: []string{"zabbix-agent2.service"}, restart: []string{"/etc/zabbix/zabbix_agent2.conf", "/etc/zabbix/zabbix_agent2.d/**"}},
	{units: []string{"zabbix-server.service"}, restart: []string{"/etc/zabbix/zabbix_server.conf", "/etc/zabbix/zabbix_server.conf.d/**"}},
	{units: []string{"zabbix-proxy.service"}, restart: []string{"/etc/zabbix/zabbix_proxy.conf", "/etc/zabbix/zabbix_proxy.conf.d/**"}},
	{units: []string{"icinga2.service"}, reload: []string{"/etc/icinga2/**"}, check: []string{"/usr/sbin/icinga2", "daemon", "-C"}},
	{units: []string{"nagios4.service"}, reload: []string{"/etc/nagios4/**"}, check: []string{"/usr/sbin/nagios4", "-v", "/etc/nagios4/nagios.cfg"}},
	{units: []string{"nagios-nrpe-server.service"}, reload: []string{"/etc/nagios/nrpe.cfg", "/etc/nagios/nrpe_local.cfg", "/etc/nagios/nrpe.d/**"}},
	{units: []string{"monit.service"}, reload: []string{"/etc/monit/**"}, check: []string{"/usr/bin/monit", "-t"}},
	{units: []string{"munin-node.service"}, restart: []string{"/etc/munin/munin-node.conf", "/etc/munin/plugin-conf.d/**"}},
	{units: []string{"nut-server.service"}, reload: []string{"/etc/nut/ups.conf", "/etc/nut/upsd.conf", "/etc/nut/upsd.users"}},
	{units: []string{"nut-monitor.service"}, reload: []string{"/etc/nut/upsmon.conf"}},
	{
		units: []string{"suricata.service"}, restart: []string{"/etc/suricata/suricata.yaml"}, reload: []string{"/etc/suricata/rules/**"},
	},
	{units: []string{"acpid.service"}, reload: []string{"/etc/acpi/events/*"}},

	// Containers, machines, builds, fleets.
	{
		units: []string{"docker.service"}, restart: []string{"/etc/docker/daemon.json"},
		check: []string{"/usr/bin/dockerd", "--validate"},
	},
	{units: []string{"containerd.service"}, restart: []string{"/etc/containerd/**"}},
	{units: []string{"crio.service"}, restart: []string{"/etc/crio/**"}},
	{units: []string{"kubelet.service"}, restart: []string{"/var/lib/kubelet/config.yaml", "/etc/kubernetes/kubelet.conf"}},
	{units: []string{"libvirtd.service"}, restart: []string{"/etc/libvirt/libvirtd.conf", "/etc/libvirt/qemu.conf"}},
	{units: []string{"virtqemud.service"}, restart: []string{"/etc/libvirt/virtqemud.conf", "/etc/libvirt/qemu.conf"}},
	{units: []string{"gitlab-runner.service"}, itself: []string{"/etc/gitlab-runner/**"}},
	{units: []string{"jenkins.service"}, restart: []string{"/etc/default/jenkins"}},
	{units: []string{"salt-minion.service"}, restart: []string{"/etc/salt/minion", "/etc/salt/minion.d/**"}},
	{units: []string{"salt-master.service"}, restart: []string{"/etc/salt/master", "/etc/salt/master.d/**"}},
	{units: []string{"puppet.service"}, itself: []string{"/etc/puppet/**"}},
	{units: []string{"consul.service"}, reload: []string{"/etc/consul.d/**"}, check: []string{"/usr/bin/consul", "validate", "/etc/consul.d"}},
	{units: []string{"nomad.service"}, restart: []string{"/etc/nomad.d/**"}},
	{units: []string{"vault.service"}, restart: []string{"/etc/vault.d/**"}},

	// The message bus and systemd's own.
	{
		// The session bus of each user reads session.d and services by itself.
		units: []string{"dbus.service", "dbus-broker.service"},
		reload: []string{
			"/etc/dbus-1/system.conf", "/etc/dbus-1/system-local.conf", "/etc/dbus-1/system.d/**",
			"/usr/share/dbus-1/system.conf", "/usr/share/dbus-1/system.d/**", "/usr/share/dbus-1/system-services/**",
			"/usr/local/share/dbus-1/system.d/**", "/usr/local/share/dbus-1/system-services/**",
		},
	},
	{units: []string{"systemd-journald.service", "systemd-journald@*.service"}, reload: systemdConf("journald")},
	{units: []string{"systemd-logind.service"}, reload: systemdConf("logind")},
	{units: []string{"systemd-resolved.service"}, reload: append(systemdConf("resolved"), "/etc/systemd/dnssd/*.dnssd", "/etc/dnssec-trust-anchors.d/**")},
	{units: []string{"systemd-timesyncd.service"}, restart: systemdConf("timesyncd")},
	{units: []string{"systemd-oomd.service"}, restart: systemdConf("oomd")},
	{units: []string{"systemd-homed.service"}, restart: systemdConf("homed")},
	{units: []string{"systemd-journal-upload.service"}, restart: systemdConf("journal-upload")},
	{units: []string{"systemd-journal-remote.service"}, restart: systemdConf("journal-remote")},
	{
		units: []string{"systemd-networkd.service"}, restart: systemdConf("networkd"),
		reload: []string{
			"/etc/systemd/network/**", "/usr/local/lib/systemd/network/**", "/usr/lib/systemd/network/**",
		},
		itself: []string{"/etc/systemd/network/*.link", "/usr/local/lib/systemd/network/*.link", "/usr/lib/systemd/network/*.link"},
	},
	{units: []string{"systemd-udevd.service"}, restart: []string{"/etc/udev/udev.conf", "/etc/udev/udev.conf.d/*.conf", "/usr/lib/udev/udev.conf.d/*.conf"}},
}

func systemdConf(name string) []string {
	return []string{
		"/etc/systemd/" + name + ".conf", "/etc/systemd/" + name + ".conf.d/*.conf",
		"/usr/local/lib/systemd/" + name + ".conf.d/*.conf",
		"/usr/lib/systemd/" + name + ".conf", "/usr/lib/systemd/" + name + ".conf.d/*.conf",
	}
}

// noUnit are files that no daemon holds, and that can lock everybody out.
var noUnit = []daemon{
	{itself: []string{"/etc/sudoers", "/etc/sudoers.d/*"}, check: []string{"/usr/sbin/visudo", "-c"}},
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
	"/etc/alternatives/**", "/etc/binfmt.d/**", "/etc/sysusers.d/**", "/etc/environment.d/**", "/etc/security/**",
	"/etc/logcheck/**", "/etc/skel/**", "/etc/update-motd.d/**", "/etc/ssh/ssh_config", "/etc/ssh/ssh_config.d/**",
}
