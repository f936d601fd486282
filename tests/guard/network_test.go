package guard

import (
	"strings"
	"testing"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/tests/machine"
)

// An update that cuts the machine off is rolled back, and the machine is reached again.
// Where nobody watches the loss stays: that is the negative control of each.
func testNetwork(t *testing.T, m *machine.Machine) {
	bridge := func(lines string) map[string]string { return map[string]string{bridgeConf: files[bridgeConf] + lines} }
	tests := []struct {
		name    string
		short   bool
		changed map[string]string
		lost    string // "": nothing is
		after   string
		gone    string // a command of the machine that succeeds while the loss lasts
	}{
		{
			"the default route", true,
			map[string]string{networkConf: strings.Replace(uplink, "Gateway=10.77.0.1\n", "", 1)},
			"default route via 10.77.0.1 dev uplink0", "systemd-networkd.service", "! ip route show default | grep -q .",
		},
		{
			"the link is taken down", false,
			map[string]string{networkConf: strings.Replace(uplink, "[Network]", "[Link]\nActivationPolicy=always-down\n\n[Network]", 1)},
			"link uplink0", "systemd-networkd.service", "! ip link show up dev uplink0 | grep -q .",
		},
		{
			"the address", false,
			map[string]string{networkConf: strings.Replace(uplink, "10.77.0.2/24", "10.77.0.3/24", 1)},
			"10.77.0.2/24 on uplink0", "systemd-networkd.service", "! ip address | grep -q 10.77.0.2/24",
		},
		{"a bridge's port", true, bridge("PORT=\n"), "lan0 as a port of br0", "lan.service", "! ip link show master br0 | grep -q lan0"},
		{
			"another unit takes the link down", false, bridge("UPLINK=no\n"),
			"default route via 10.77.0.1 dev uplink0", "lan.service", "! ip link show up dev uplink0 | grep -q .",
		},
		{"a router that does not answer", false, bridge("WRONG=yes\n"), "router 10.77.0.1 on uplink0", "lan.service", "ip link show br0 | grep -q br0"},
		{"a flap of two seconds", true, bridge("LATE=2\n"), "", "", ""},
	}
	for i, tt := range tests {
		if !tt.short && !long() {
			continue
		}
		t.Run(tt.name, func(t *testing.T) {
			dir := update(t, m, tt.changed)
			before := treeOf(t, m)
			out := apply(t, m, dir)
			for _, f := range out.Report.Network {
				if f.Result != change.NetKept {
					t.Logf("%+v", f)
				}
			}
			if tt.lost == "" {
				out.Want(t, 0)
				if f := result(out, "lan0 as a port"); f.Result != change.NetBack {
					t.Errorf("the report says %+v of what was away for two seconds", f)
				}
				rollback(t, m)
				return
			}
			out.Want(t, 3)
			f := result(out, tt.lost)
			if f.Result != change.NetRestored || !strings.Contains(f.After, tt.after) {
				t.Errorf("the report says %+v; want %s restored, after %s", f, tt.lost, tt.after)
			}
			if !strings.Contains(out.Report.Error, tt.lost) || !strings.Contains(out.Report.Error, "was lost after") {
				t.Errorf("the report's error is %q", out.Report.Error)
			}
			sameTree(t, before, treeOf(t, m))
			if !reached(m, "10.77.0.2") || !reached(m, "10.78.0.2") {
				t.Fatalf("the machine is not reached:\n%s", network(m))
			}
			if i > 0 && !long() {
				return
			}
			configure(t, m, healthOff)
			if out := apply(t, m, dir, "--guard", "off").Want(t, 0); len(out.Report.Network) > 0 {
				t.Errorf("the network is watched although it is not to be: %+v", out.Report.Network)
			}
			if m.Run("sh", "-c", tt.gone).Code != 0 {
				t.Errorf("without the guard nothing is lost: the update is no test of it\n%s", network(m))
			}
			rollback(t, m)
			for deadline := time.Now().Add(5 * time.Second); !reached(m, "10.77.0.2") || !reached(m, "10.78.0.2"); time.Sleep(100 * time.Millisecond) {
				if time.Now().After(deadline) {
					m.Shell("ip link set uplink0 up; networkctl reconfigure uplink0; systemctl restart lan.service")
				}
			}
		})
	}
}

// What neither the old files nor the units in charge of the network bring back is put back
// as it was before, and told.
func testPutBack(t *testing.T, m *machine.Machine) {
	m.Shell("ip route add 10.79.0.0/16 via 10.78.0.1")
	out := apply(t, m, update(t, m, map[string]string{"usr/lib/app/mode.py": `import subprocess
for line in ("link set lan0 nomaster", "link set lan0 down", "address flush dev br0"):
    subprocess.run(["ip"] + line.split(), check=True)
crash = 0
port = 8077
`})).Want(t, 3)
	for _, what := range []string{"lan0 as a port of br0", "10.78.0.2/24 on br0", "route 10.79.0.0/16 via 10.78.0.1 dev br0"} {
		if f := result(out, what); f.Result != change.NetPutBack || !strings.Contains(f.After, "app.service") {
			t.Errorf("the report says %+v of %s", f, what)
		}
	}
	if !reached(m, "10.78.0.2") || !strings.Contains(m.Shell("ip route"), "10.79.0.0/16 via 10.78.0.1 dev br0") {
		t.Errorf("the machine is not as it was:\n%s", network(m))
	}
	m.Shell("ip route del 10.79.0.0/16")
}

// Containers that come and go meanwhile are no loss.
func testContainers(t *testing.T, m *machine.Machine) {
	m.Shell(`cat >/run/churn <<'END'
#!/bin/sh
# A container on its way up and down, on a bridge of its own and on the machine's.
ip link add docker0 type bridge
ip addr add 172.17.0.1/16 dev docker0
ip link set docker0 up
i=0
while [ ! -e /run/enough ]; do
	i=$((i + 1))
	ip link add vethA$i type veth peer name vethB$i
	ip link set vethA$i up master docker0
	ip link set vethB$i up
	ip link add vethC$i type veth peer name vethD$i
	ip link set vethC$i up master br0
	ip link set vethD$i up
	ip addr add 10.99.$((i % 250)).1/24 dev vethD$i
	sleep 0.4
	ip link del vethA$i
	ip link del vethC$i
	sleep 0.2
done
END
chmod +x /run/churn; systemd-run --unit=churn /run/churn; while ! ip link show docker0; do sleep 0.1; done`)
	out := apply(t, m, update(t, m, map[string]string{"usr/lib/app/mode.py": "crash = 0\nport = 8077\n# churn\n"})).Want(t, 0)
	m.Shell("touch /run/enough")
	for _, f := range out.Report.Network {
		if f.Result != change.NetKept {
			t.Errorf("%+v", f)
		}
		if strings.Contains(f.What, "veth") {
			t.Logf("was there when the picture was taken: %+v", f)
		}
	}
	m.Shell("ip link del docker0")
	rollback(t, m)
	if n := len(out.Report.Network); n == 0 {
		t.Error("nothing was watched")
	}
}
