package ui

import (
	"github.com/liveupd/liveupd/change"
)

const night = 1_799_900_000

func exampleNights() *change.NightStatus {
	failed := &change.Night{
		Result: change.NightRolledBack, Began: night, Ended: night + 60, ID: "20270113T031400.000000Z-aabbccdd",
		Error: "the canary: /usr/local/sbin/canary ended with status 1\n  no answer", Hint: "see what it says\x1b[31m",
		Deferred: []change.Waiting{
			{Unit: "db.service", Since: night - 400_000, Needs: change.ActionRestart, Reasons: []change.Reason{{Kind: "mapped", Path: "/usr/lib/libssl.so.3", Detail: "the policy of /etc/liveupd/policy.d/a.toml:1"}}},
			{Unit: "web.service", Since: night, Needs: change.ActionReload, Reasons: []change.Reason{{Kind: "config", Path: "/etc/web.conf"}}},
		},
		HostAction: change.ActionReboot,
	}
	return &change.NightStatus{
		Enabled: true, Last: failed, Phase: "canary", Since: night + 90_000,
		Changed: &change.Night{Result: change.NightDone, Began: night - 90_000, Ended: night - 89_000, ID: "20270112T031400.000000Z-aabbccdd", Resumed: "the machine was rebooted", Reboot: night},
		BackOff: []change.BackOff{
			{Source: "apt", Packages: []change.Package{{Name: "openssl", To: "3.0.2"}}, Failures: 2, Until: night + 200_000, Error: "the canary: status 1"},
			{Source: "tar:https://x/y", Name: "web", Version: "7", Failures: 1, Until: night + 100_000, Error: "no"},
		},
	}
}

func examplePolicy() *change.PolicyReport {
	return &change.PolicyReport{
		At: night, Max: "restart", Allowed: false,
		Allowances: []change.Allowance{
			{What: "enabled", Allows: true, Detail: "unattended runs are enabled"},
			{What: "windows", Detail: "the window is closed (03:00-05:00)"},
		},
		Rules: []change.RuleState{
			{Source: "/etc/liveupd/policy.d/a.toml:1", Units: []string{"db*.service"}, Windows: []string{"Sat,Sun 02:00-04:30"}, Changes: night, Reason: "the shop", Running: []string{"db1.service"}},
			{Source: "/etc/liveupd/policy.d/a.toml:6", Paths: []string{"/opt/**"}, Action: "ignore", Open: true},
			{Source: "unattended.never", Units: []string{"x.service"}, Action: "never", Open: true, Never: "no minute in common"},
		},
		BackOff: exampleNights().BackOff[:1], Deferred: exampleNights().Last.Deferred[:1],
	}
}
