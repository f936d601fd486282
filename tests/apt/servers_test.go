package apt

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
)

// writer writes numbers to three databases, one after the other, and notes each that was taken.
const writer = `#!/bin/sh
mariadb -e 'create database w; create table w.t(i int)'
su postgres -c 'psql -qc "create table t(i int)"'
n=0
while :; do
	n=$((n + 1))
	mariadb -e "insert into w.t values($n)" && echo $n >>/run/taken.mariadb
	su postgres -c "psql -qc 'insert into t values($n)'" && echo $n >>/run/taken.postgresql
	redis-cli --no-raw sadd t $n | grep -q integer && echo $n >>/run/taken.redis
	sleep 0.1
done
`

// lost prints each number that a database took and has not.
const lost = `systemctl stop writer.service
mariadb -BNe 'select i from w.t' >/run/has.mariadb
su postgres -c "psql -Atc 'select i from t'" >/run/has.postgresql
redis-cli --raw smembers t >/run/has.redis
for db in mariadb postgresql redis; do
	test -s /run/taken.$db || echo "$db took nothing"
	sort -u /run/has.$db >/run/sorted
	sort -u /run/taken.$db | comm -23 - /run/sorted | sed "s/^/$db lost /"
done
systemctl start writer.service`

// Real servers with data of their own, which are written to all the while: the upgrades that Debian has
// for them are one transaction, no more is interrupted than the plan says, nothing that was taken is lost, and all
// of it goes back.
func TestServers(t *testing.T) {
	if os.Getenv("LIVEUPD_LONG") != "1" {
		t.Skip("installs some two hundred packages: with LIVEUPD_LONG=1; TestLiveData has a server with data of its own")
	}
	for _, name := range []string{"servers-bookworm", "servers-trixie"} {
		t.Run(name, func(t *testing.T) {
			machine.Require(t)
			debs := upgrades(t, name)
			m := machine.Boot(t, machine.Options{Root: name, Programs: machine.Programs(t), Free: 2 << 30, Customize: func(root string) error {
				ports := filepath.Join(root, "etc/apache2/ports.conf") // nginx has the usual one
				if err := os.WriteFile(ports, []byte("Listen 8081\n"), 0o644); err != nil {
					return err
				}
				if err := os.WriteFile(filepath.Join(root, "usr/local/bin/writer"), []byte(writer), 0o755); err != nil {
					return err
				}
				unit := "[Service]\nExecStart=/usr/local/bin/writer\n"
				if err := os.WriteFile(filepath.Join(root, "etc/systemd/system/writer.service"), []byte(unit), 0o644); err != nil {
					return err
				}
				return archive(root, nil, debs...)
			}})
			m.Shell("systemctl is-system-running --wait >/dev/null || :; systemctl reset-failed; systemctl start writer.service; until [ -s /run/taken.redis ]; do sleep 0.1; done")
			down := func(when string) {
				t.Helper()
				if out := m.Shell(lost); out != "" {
					t.Errorf("%s: %s", when, out)
				}
				if out := m.Shell("dpkg --audit; apt-get -q check >/dev/null; systemctl list-units --failed --no-legend --plain --type=service,socket,timer,mount; for u in mariadb postgresql redis-server apache2 nginx named dovecot slapd smbd; do systemctl is-active -q $u || echo $u is down; done"); out != "" {
					t.Errorf("%s: %s", when, out)
				}
			}
			down("at first")
			before := m.Shell("dpkg-query -W")
			units := m.Units()
			applied := fixture.In(t, m, "apply", "--yes")
			if applied.Code != 4 {
				applied.Want(t, 0)
			}
			for _, u := range machine.Interrupted(units, m.Units()) {
				if action := applied.Actions()[u]; action != "restart" && action != "stop" && u != "writer.service" && !strings.HasSuffix(u, ".scope") && !strings.HasPrefix(u, "user") {
					t.Errorf("%s was interrupted, which the plan did not say", u)
				}
			}
			if i := slices.IndexFunc(applied.Report.Warnings, func(w string) bool { return strings.Contains(w, "still uses") }); i >= 0 {
				t.Error(applied.Report.Warnings[i])
			}
			t.Logf("%d packages, %+v; %v", len(applied.Plan.Packages), applied.Plan.Changes, applied.Actions())
			down("after the update")
			for _, u := range fixture.In(t, m, "check").Want(t, 0).Check.Units {
				if u.Action.String() != "defer" {
					t.Errorf("check would %s %s: %+v", u.Action, u.Unit, u.Reasons)
				}
			}
			fixture.In(t, m, "rollback", "--yes").Want(t, 0)
			down("after the rollback")
			if after := m.Shell("dpkg-query -W"); after != before {
				t.Errorf("after the rollback the packages are\n%s\nbefore they were\n%s", after, before)
			}
		})
	}
}
