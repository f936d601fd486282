package jobs

// gone is the text of a unit that the update removes.
const gone = "(removed)"

const (
	sleeper = "[Service]\nExecStart=/bin/sleep infinity\n"
	other   = "[Service]\nExecStart=/bin/sleep 9999999\n"
	reloads = "[Service]\nExecStart=/bin/sleep infinity\nExecReload=/bin/true\n"
	again   = "[Service]\nExecStart=/bin/sleep 9999999\nExecReload=/bin/true\n"
)

// Each case is a few units of its own: @@ stands for a name that no other has.
// A case with want252 comes out otherwise on systemd 252.
var cases = []struct {
	name          string
	old, new      map[string]string
	start         []string
	want, want252 []string
	from          int // the version of systemd that knows the settings
}{
	{
		name: "Requires, Requisite, BindsTo, PartOf carry a restart; Wants, After and Upholds do not",
		old: map[string]string{
			"@@-a.service": sleeper,
			"@@-b.service": "[Unit]\nRequires=@@-a.service\nAfter=@@-a.service\n" + sleeper,
			"@@-c.service": "[Unit]\nRequisite=@@-a.service\nAfter=@@-a.service\n" + sleeper,
			"@@-d.service": "[Unit]\nBindsTo=@@-a.service\nAfter=@@-a.service\n" + sleeper,
			"@@-e.service": "[Unit]\nPartOf=@@-a.service\n" + sleeper,
			"@@-f.service": "[Unit]\nWants=@@-a.service\nAfter=@@-a.service\n" + sleeper,
			"@@-g.service": "[Unit]\nUpholds=@@-a.service\n" + sleeper,
			"@@-h.service": "[Unit]\nRequires=@@-b.service\n" + sleeper,
		},
		new:   map[string]string{"@@-a.service": other},
		start: []string{"@@-a.service", "@@-b.service", "@@-c.service", "@@-d.service", "@@-e.service", "@@-f.service", "@@-g.service", "@@-h.service"},
		want:  []string{"restart a.service", "~restart b.service", "~restart c.service", "~restart d.service", "~restart e.service", "~restart h.service"},
	},
	{
		name: "dependencies that do not run are not restarted",
		old: map[string]string{
			"@@-a.service": sleeper,
			"@@-b.service": "[Unit]\nRequires=@@-a.service\n" + sleeper,
			"@@-c.service": "[Unit]\nRequires=@@-b.service\n" + sleeper,
		},
		new:   map[string]string{"@@-a.service": other},
		start: []string{"@@-a.service"},
		want:  []string{"restart a.service"},
	},
	{
		name: "a restart brings up what the unit wants, and what that requires",
		old: map[string]string{
			"@@-a.service":     "[Unit]\nWants=@@-b.service\n" + sleeper,
			"@@-b.service":     "[Unit]\nRequires=@@-c.service\n" + sleeper,
			"@@-c.service":     sleeper,
			"@@-ended.service": "[Service]\nType=oneshot\nExecStart=/bin/true\n",
		},
		new: map[string]string{"@@-a.service": "[Unit]\nWants=@@-b.service\nWants=@@-ended.service\n" + other},
		// b and c were stopped by hand since.
		start: []string{"@@-a.service", "&& systemctl stop @@-b.service @@-c.service && systemctl start @@-ended.service"},
		want:  []string{"restart a.service", "~start b.service", "~start c.service", "~start ended.service"},
	},
	{
		name: "Wants= of a unit that keeps running starts nothing on a restart of another",
		old: map[string]string{
			"@@-a.service": "[Unit]\nWants=@@-b.service\n" + sleeper,
			"@@-b.service": "[Unit]\nWants=@@-c.service\n" + sleeper,
			"@@-c.service": sleeper,
		},
		new:   map[string]string{"@@-a.service": "[Unit]\nWants=@@-b.service\n" + other},
		start: []string{"@@-a.service", "@@-b.service", "&& systemctl stop @@-c.service"},
		want:  []string{"restart a.service"},
	},
	{
		name: "a new Conflicts= stops the other one",
		old: map[string]string{
			"@@-a.service": sleeper, "@@-b.service": sleeper,
			"@@-c.service": "[Unit]\nRequires=@@-b.service\n" + sleeper,
		},
		new:   map[string]string{"@@-a.service": "[Unit]\nConflicts=@@-b.service\n" + other},
		start: []string{"@@-a.service", "@@-b.service", "@@-c.service"},
		want:  []string{"restart a.service", "~stop b.service", "~stop c.service"},
	},
	{
		name: "a dependency that the update drops carries nothing, one that it adds does",
		old: map[string]string{
			"@@-a.service": sleeper,
			"@@-b.service": "[Unit]\nRequires=@@-a.service\n" + sleeper,
			"@@-c.service": sleeper,
		},
		new: map[string]string{
			"@@-a.service": other, "@@-b.service": sleeper, "@@-c.service": "[Unit]\nPartOf=@@-a.service\n" + sleeper,
		},
		start: []string{"@@-a.service", "@@-b.service", "@@-c.service"},
		want:  []string{"restart a.service", "~restart c.service"},
	},
	{
		name: "PropagatesStopTo and StopPropagatedFrom",
		old: map[string]string{
			"@@-a.service": "[Unit]\nPropagatesStopTo=@@-b.service\n" + sleeper,
			"@@-b.service": sleeper,
			"@@-c.service": "[Unit]\nStopPropagatedFrom=@@-a.service\n" + sleeper,
		},
		new:     map[string]string{"@@-a.service": "[Unit]\nPropagatesStopTo=@@-b.service\n" + other},
		start:   []string{"@@-a.service", "@@-b.service", "@@-c.service"},
		want:    []string{"restart a.service", "~stop b.service", "~stop c.service"},
		want252: []string{"restart a.service"},
	},
	{
		name: "a removed unit takes along what requires it",
		old: map[string]string{
			"@@-a.service": sleeper,
			"@@-b.service": "[Unit]\nRequires=@@-a.service\n" + sleeper,
			"@@-c.service": "[Unit]\nBindsTo=@@-a.service\n" + sleeper,
		},
		new:   map[string]string{"@@-a.service": gone, "@@-b.service": sleeper, "@@-c.service": sleeper},
		start: []string{"@@-a.service", "@@-b.service", "@@-c.service"},
		want:  []string{"stop a.service", "~stop b.service", "~stop c.service"},
	},
	{
		name: "StopWhenUnneeded follows the stop of the last one that needs it",
		old: map[string]string{
			"@@-a.service": "[Unit]\nWants=@@-b.service @@-c.service\n" + sleeper,
			"@@-b.service": "[Unit]\nStopWhenUnneeded=yes\n" + sleeper,
			"@@-c.service": "[Unit]\nStopWhenUnneeded=yes\n" + sleeper,
			"@@-d.service": "[Unit]\nRequires=@@-c.service\n" + sleeper,
		},
		new:   map[string]string{"@@-a.service": gone},
		start: []string{"@@-a.service", "@@-d.service"},
		want:  []string{"stop a.service", "~stop b.service"},
	},
	{
		name: "a new wish of a running target starts the unit and what it needs",
		old: map[string]string{
			"@@-t.target": "[Unit]\nDescription=t\n",
		},
		new: map[string]string{
			"@@-t.target":  "[Unit]\nDescription=t\nWants=@@-a.service\n",
			"@@-a.service": "[Unit]\nRequires=@@-b.service\n" + sleeper,
			"@@-b.service": sleeper,
		},
		start: []string{"@@-t.target"},
		want:  []string{"start a.service", "~start b.service"},
	},
	{
		name: "settings that the manager reads when the moment comes",
		old: map[string]string{
			"@@-a.service": sleeper, "@@-b.service": sleeper, "@@-c.service": sleeper,
			"@@-a.timer": "[Timer]\nOnCalendar=2099-01-01\nUnit=@@-a.service\n",
			"@@-d.path":  "[Path]\nPathExists=/nonexistent/@@\nUnit=@@-a.service\n",
		},
		new: map[string]string{
			"@@-a.service": "[Unit]\nDescription=x\nAfter=basic.target\n" + sleeper + "ExecStop=/bin/true\nExecStopPost=/bin/true\nRestart=on-failure\nTimeoutStopSec=9\n",
			"@@-b.service": sleeper + "MemoryMax=100M\nCPUWeight=50\nTasksMax=77\nKillMode=mixed\n",
			"@@-c.service": "[Unit]\nConditionPathExists=/nonexistent\n" + sleeper + "ExecReload=/bin/true\n[Install]\nWantedBy=multi-user.target\n",
			"@@-a.timer":   "[Timer]\nOnCalendar=2098-01-01\nUnit=@@-a.service\n",
			"@@-d.path":    "[Path]\nPathExists=/nonexistent/2@@\nUnit=@@-a.service\n",
		},
		start: []string{"@@-a.service", "@@-b.service", "@@-c.service", "@@-a.timer", "@@-d.path"},
	},
	{
		name: "another spelling of the same",
		old: map[string]string{
			"@@-a.service": "[Unit]\nAfter=basic.target sysinit.target\n[Service]\nExecStart=/bin/sleep infinity\nPrivateTmp=yes\nEnvironment=A=1 B=2\nWatchdogSec=0\nLimitNOFILE=1024\n",
		},
		new: map[string]string{
			"@@-a.service": "[Unit]\nAfter=sysinit.target\nAfter=basic.target\n[Service]\nExecStart=/bin/false\nExecStart=\nExecStart=/bin/sleep \\\n# a comment\n  'infinity'\nPrivateTmp=on\nEnvironment=\"B=2\" A=0\nEnvironment=A=1\nWatchdogSec=0s\nLimitNOFILE=1024:1024\nNoNewPrivileges=no\n",
		},
		start: []string{"@@-a.service"},
	},
	{
		name: "instances of a template that run, with the drop-in of one",
		old: map[string]string{
			"@@-a@.service": "[Service]\nExecStart=/bin/sleep %i\n",
		},
		new: map[string]string{
			"@@-a@.service":                "[Service]\nExecStart=/bin/sleep %I\n",
			"@@-a@9998.service.d/one.conf": "[Service]\nNice=5\n",
		},
		start: []string{"@@-a@9998.service", "@@-a@9999.service"},
		want:  []string{"restart a@9998.service"},
	},
	{
		name: "a socket's address",
		old: map[string]string{
			"@@-a.socket":  "[Socket]\nListenStream=/run/@@.old\n",
			"@@-a.service": sleeper,
			"@@-b.service": "[Unit]\nRequires=@@-a.service\n" + sleeper,
		},
		new:   map[string]string{"@@-a.socket": "[Socket]\nListenStream=/run/@@.new\n"},
		start: []string{"@@-a.socket", "@@-a.service", "@@-b.service"},
		want:  []string{"restart a.service", "restart a.socket", "~restart b.service"},
	},
	{
		name: "a socket's mode, its service does not run",
		old: map[string]string{
			"@@-a.socket": "[Socket]\nListenStream=/run/@@.s\n", "@@-a.service": sleeper,
		},
		new:   map[string]string{"@@-a.socket": "[Socket]\nListenStream=/run/@@.s\nSocketMode=0600\nMaxConnections=9\n"},
		start: []string{"@@-a.socket"},
		want:  []string{"restart a.socket"},
	},
	{
		name: "a reload goes along PropagatesReloadTo and ReloadPropagatedFrom",
		old: map[string]string{
			"@@-a.service": "[Unit]\nPropagatesReloadTo=@@-b.service @@-d.service\nX-Reload-Triggers=1\n" + reloads,
			"@@-b.service": reloads,
			"@@-c.service": "[Unit]\nReloadPropagatedFrom=@@-a.service\n" + reloads,
			"@@-d.service": sleeper,
		},
		new:   map[string]string{"@@-a.service": "[Unit]\nPropagatesReloadTo=@@-b.service @@-d.service\nX-Reload-Triggers=2\n" + reloads},
		start: []string{"@@-a.service", "@@-b.service", "@@-c.service", "@@-d.service"},
		want:  []string{"reload a.service", "~reload b.service", "~reload c.service"},
	},
	{
		name: "a oneshot that remains, a unit that refuses, and one that asks to be left alone",
		old: map[string]string{
			"@@-a.service": "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n",
			"@@-b.service": "[Unit]\nRefuseManualStop=yes\n" + sleeper,
			"@@-c.service": "[Unit]\nX-RestartIfChanged=false\n" + sleeper,
			"@@-d.service": "[Unit]\nX-StopIfChanged=true\n" + sleeper,
		},
		new: map[string]string{
			"@@-a.service": "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true 2\n",
			"@@-b.service": "[Unit]\nRefuseManualStop=yes\n" + other,
			"@@-c.service": "[Unit]\nX-RestartIfChanged=false\n" + other,
			"@@-d.service": "[Unit]\nX-StopIfChanged=true\n" + other,
		},
		start: []string{"@@-a.service", "@@-b.service", "@@-c.service", "@@-d.service"},
		want:  []string{"defer b.service", "defer c.service", "restart d.service"},
	},
	{
		name: "a unit that is renamed keeps running under its alias",
		old:  map[string]string{"@@-a.service": sleeper},
		new: map[string]string{
			"@@-b.service": sleeper,
			"@@-a.service": "-> @@-b.service",
		},
		start: []string{"@@-a.service"},
	},
	{
		name: "a masked unit stops, by its old ExecStop",
		old:  map[string]string{"@@-a.service": sleeper + "ExecStop=/bin/touch /run/@@.stopped\n"},
		new:  map[string]string{"@@-a.service": "-> /dev/null"},

		start: []string{"@@-a.service"},
		want:  []string{"stop a.service"},
	},
	{
		name: "new Upholds= and BindsTo= act at the reload",
		old: map[string]string{
			"@@-a.service": sleeper, "@@-b.service": sleeper, "@@-c.service": sleeper, "@@-d.service": sleeper,
		},
		new: map[string]string{
			"@@-a.service": "[Unit]\nUpholds=@@-b.service\n" + sleeper,
			"@@-c.service": "[Unit]\nBindsTo=@@-d.service\nAfter=@@-d.service\n" + sleeper,
		},
		start: []string{"@@-a.service", "@@-c.service"},
		want:  []string{"~start b.service", "~stop c.service"},
	},
	{
		name:  "a setting that this systemd does not know yet",
		old:   map[string]string{"@@-a.service": sleeper},
		new:   map[string]string{"@@-a.service": sleeper + "RootMStack=/nonexistent\n"},
		start: []string{"@@-a.service"},
	},
	{
		name: "StopWhenUnneeded= that is new, and the last one that needs it no more, act at the reload",
		old: map[string]string{
			"@@-a.service": sleeper,
			"@@-b.service": sleeper, "@@-c.service": "[Unit]\nWants=@@-b.service\n" + sleeper,
			"@@-d.service": "[Unit]\nWants=@@-e.service\n" + sleeper,
			"@@-e.service": "[Unit]\nStopWhenUnneeded=yes\n" + sleeper,
			"@@-f.service": "[Unit]\nRequires=@@-e.service\n" + sleeper,
			"@@-g.service": "[Unit]\nUpholds=@@-h.service\n" + sleeper,
			"@@-h.service": "[Unit]\nStopWhenUnneeded=yes\n" + sleeper,
		},
		new: map[string]string{
			"@@-a.service": "[Unit]\nStopWhenUnneeded=yes\n" + sleeper,
			"@@-b.service": "[Unit]\nStopWhenUnneeded=yes\n" + sleeper,
			"@@-d.service": sleeper, "@@-g.service": sleeper,
		},
		start: []string{"@@-a.service", "@@-c.service", "@@-d.service", "@@-f.service", "@@-g.service"},
		want:  []string{"~stop a.service", "~stop h.service"},
	},
	{
		name: "a oneshot becomes a daemon",
		old: map[string]string{
			"@@-a.service": "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n",
			"@@-b.service": "[Service]\nType=oneshot\nExecStart=/bin/true\n",
			"@@-t.target":  "[Unit]\nWants=@@-b.service\n",
		},
		new:   map[string]string{"@@-a.service": sleeper, "@@-b.service": sleeper},
		start: []string{"@@-a.service", "@@-t.target"},
		want:  []string{"restart a.service"}, // no boot reaches b
	},
	{
		name:  "a reload that goes with the definition",
		old:   map[string]string{"@@-a.service": "[Unit]\nX-Reload-Triggers=1\n" + reloads, "@@-b.service": "[Unit]\nX-Reload-Triggers=1\n" + sleeper},
		new:   map[string]string{"@@-a.service": "[Unit]\nX-Reload-Triggers=2\n" + sleeper, "@@-b.service": "[Unit]\nX-Reload-Triggers=2\n" + reloads},
		start: []string{"@@-a.service", "@@-b.service"},
		want:  []string{"restart a.service", "reload b.service"},
	},
	{
		name: "what serves one connection stays, whatever becomes of its template",
		old: map[string]string{
			"@@-a.socket":   "[Socket]\nListenStream=127.0.0.1:7061\nAccept=yes\n",
			"@@-a@.service": "[Service]\nExecStart=/bin/sleep 9999\nStandardInput=socket\n",
		},
		new: map[string]string{"@@-a@.service": "[Service]\nExecStart=/bin/sleep 8888\nStandardInput=socket\n"},
		start: []string{
			"@@-a.socket",
			"&& bash -c 'exec 3<>/dev/tcp/127.0.0.1/7061; exec sleep 600' >/dev/null 2>&1 & " +
				"for i in $(seq 100); do systemctl is-active -q '@@-a@*.service' && exit; sleep 0.1; done; exit 1",
		},
	},
	{
		name: "a condition on a path that does not hold: what it ends is stopped, what it keeps from a start is not started",
		old:  map[string]string{"@@-a.service": sleeper, "@@-b.service": "[Unit]\nConditionPathExists=!/etc/none\n" + sleeper, "@@-t.target": "[Unit]\nDescription=t\n"},
		new: map[string]string{
			"@@-a.service": "[Unit]\nConditionPathExists=/etc/none\n" + other,
			"@@-b.service": "[Unit]\nConditionPathExists=!/etc/none\nAssertPathExists=/etc/passwd\n" + other,
			"@@-c.service": "[Unit]\nConditionFileNotEmpty=!/etc/passwd\n" + sleeper,
			"@@-t.target":  "[Unit]\nDescription=t\nWants=@@-c.service\n",
		},
		start: []string{"@@-a.service", "@@-b.service", "@@-t.target"},
		want:  []string{"stop a.service", "restart b.service"},
	},
}
