// Package guard holds the black-box tests of the watch over an update: what the
// machine is reached by, how its units are, and liveupd itself when it is stopped.
package guard

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/tests/fixture"
	"github.com/liveupd/liveupd/tests/machine"
)

// The network of the machine: a link with systemd-networkd, a bridge that a unit in the
// way of ifupdown makes from a file, and a router for both in a namespace of its own.
const (
	networkConf = "etc/systemd/network/10-uplink.network"
	bridgeConf  = "etc/network/bridge.conf"
	switchUnit  = "usr/lib/systemd/system/lan.service"
	switchRun   = "usr/lib/lan/run"

	uplink = "[Match]\nName=uplink0\n\n[Network]\nAddress=10.77.0.2/24\nGateway=10.77.0.1\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n"
)

var files = map[string]string{
	networkConf: uplink,
	bridgeConf:  "PORT=lan0\nADDRESS=10.78.0.2/24\nPAUSE=0\nUPLINK=yes\n",
	"usr/lib/systemd/system/wire.service": `[Unit]
Description=Cables, and a router at their other ends
DefaultDependencies=no
Before=systemd-networkd.service lan.service

[Service]
Type=oneshot
RemainAfterExit=yes
X-RestartIfChanged=no
ExecStart=/usr/bin/ip netns add router
ExecStart=/usr/bin/ip link add uplink0 type veth peer name there0 netns router
ExecStart=/usr/bin/ip link add lan0 type veth peer name there1 netns router
ExecStart=/usr/bin/ip -n router addr add 10.77.0.1/24 dev there0
ExecStart=/usr/bin/ip -n router addr add 10.78.0.1/24 dev there1
ExecStart=/usr/bin/ip -n router link set there0 up
ExecStart=/usr/bin/ip -n router link set there1 up
ExecStart=/usr/bin/ip -n router link set lo up

[Install]
WantedBy=multi-user.target
`,
	switchUnit: `[Unit]
Description=A bridge, as a file describes it
X-Liveupd-Watch=/etc/network/bridge.conf
X-Liveupd-On-Change=restart
After=wire.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/lib/lan/run

[Install]
WantedBy=multi-user.target
`,
	switchRun: `#!/bin/sh
. /etc/network/bridge.conf
[ -e /sys/class/net/br0 ] || ip link add br0 type bridge
ip link set lan0 nomaster
ip addr flush dev br0
ip link set br0 down
sleep $PAUSE
[ -z "$LATE" ] || {
	setsid sh -c "sleep $LATE; ip link set br0 up; ip link set lan0 up master br0; ip addr replace $ADDRESS dev br0" >/dev/null 2>&1 </dev/null &
	exit 0
}
ip link set br0 up
[ -z "$PORT" ] || ip link set $PORT up master br0
ip addr replace $ADDRESS dev br0
[ -z "$RENEW" ] || { ip link set uplink0 down; sleep 1; ip link set uplink0 up; }
[ -z "$WRONG" ] || ip netns exec router ip neigh flush all
if [ -n "$WRONG" ]; then ip -n router link set there0 address 02:00:00:00:77:77; ip -n router addr del 10.77.0.1/24 dev there0; else ip -n router addr replace 10.77.0.1/24 dev there0; fi
[ "$UPLINK" = yes ] || { ip link set uplink0 down; ip addr flush dev uplink0; }
`,
	// What an update reaches, and what each way of being unwell looks like.
	"usr/lib/systemd/system/app.service": "[Unit]\nX-Liveupd-Watch=/usr/lib/app/conf\n[Service]\nType=exec\nExecStart=/usr/bin/python3 -B /usr/lib/app/main.py\n" +
		"Restart=always\nRestartSec=1\nX-Liveupd-Health=/usr/bin/test -e /run/well\n\n[Install]\nWantedBy=multi-user.target\n",
	// Commands that see as whom and with what they run.
	"usr/lib/systemd/system/who.service": "[Unit]\nX-Liveupd-Watch=/usr/lib/app/conf\n[Service]\nUser=www-data\nSupplementaryGroups=mail\nEnvironment=NAME=who\n" +
		"EnvironmentFile=/etc/envapp.conf\nExecStart=/usr/bin/sleep infinity\nX-Liveupd-Health=/usr/lib/app/who www-data who\n" +
		"X-Liveupd-Health=+/usr/lib/app/who root\n\n[Install]\nWantedBy=multi-user.target\n",
	"usr/lib/systemd/system/some.service": "[Unit]\nX-Liveupd-Watch=/usr/lib/app/conf\n[Service]\nDynamicUser=yes\nEnvironment=NAME=some\n" +
		"ExecStart=/usr/bin/sleep infinity\nX-Liveupd-Health=/usr/lib/app/who some some\n\n[Install]\nWantedBy=multi-user.target\n",
	"usr/lib/app/who": `#!/bin/sh -eu
# A dynamic user has a number; its name is known where nss-systemd is.
[ "$1" = some ] && [ "$(id -u)" -ge 61184 ] || [ "$(id -un)" = "$1" ]
[ "${NAME-}" = "${2-}" ]
[ "$1" != www-data ] || [ "$COLOUR" = green ]
# The run that asks can write to the root; whom it asks cannot by that.
[ "$1" = root ] || ! touch /usr/lib/app/written 2>/dev/null
# A dynamic user may write nowhere.
[ "$1" = some ] || echo "$1" >>/run/asked/names
`,
	"usr/lib/app/main.py": appMain,
	"usr/lib/app/mode.py": "crash = 0\nport = 8077\n",
	"usr/lib/app/conf":    "1\n",
}

const appMain = `import socket
import time

import mode

server = None
if mode.port:
    server = socket.create_server(("127.0.0.1", mode.port))
time.sleep(mode.crash or 1000000)
`

func services(root string) error {
	if err := fixture.Services(root); err != nil {
		return err
	}
	for name, content := range files {
		full := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			return err
		}
		mode := os.FileMode(0o644)
		if strings.HasPrefix(content, "#!") {
			mode = 0o755
		}
		if err := os.WriteFile(full, []byte(content), mode); err != nil {
			return err
		}
		if strings.Contains(content, "WantedBy=multi-user.target") {
			if err := os.Symlink("/"+name, filepath.Join(root, "etc/systemd/system/multi-user.target.wants", filepath.Base(name))); err != nil {
				return err
			}
		}
	}
	return os.Symlink("/usr/lib/systemd/system/systemd-networkd.service", filepath.Join(root, "etc/systemd/system/multi-user.target.wants/systemd-networkd.service"))
}

// long tells whether all cases are tried: the fast form takes one of each kind.
func long() bool { return os.Getenv("LIVEUPD_LONG") == "1" }

// One machine serves all: what a case changes it takes back.
func TestGuard(t *testing.T) {
	m := boot(t)
	for _, part := range []struct {
		name  string
		short bool
		test  func(*testing.T, *machine.Machine)
	}{
		{"network", true, testNetwork},
		{"put back", false, testPutBack},
		{"containers", true, testContainers},
		{"health", true, testHealth},
		{"restart", false, testRestart},
		{"stopped", true, testStopped},
		{"unwatched", false, testUnwatched},
	} {
		if !part.short && !long() {
			continue
		}
		t.Run(part.name, func(t *testing.T) { part.test(t, m) })
	}
}

// rollback takes the last update back, without looking for long.
func rollback(t *testing.T, m *machine.Machine) {
	t.Helper()
	configure(t, m, healthOff)
	fixture.In(t, m, "rollback", "--yes", "--guard", "off").Want(t, 0)
	configure(t, m, "")
}

// boot boots a machine with the network and waits until its router answers.
func boot(t *testing.T) *machine.Machine {
	t.Helper()
	machine.Require(t)
	m := machine.Boot(t, machine.Options{Customize: services, Programs: machine.Programs(t)})
	m.Shell("systemctl reset-failed; touch /run/well; mkdir -m 1777 /run/asked; install -m 666 /dev/null /run/asked/names")
	configure(t, m, "")
	for deadline := time.Now().Add(time.Minute); !reached(m, "10.77.0.2") || !reached(m, "10.78.0.2"); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the machine's own network does not come up:\n%s", network(m))
		}
	}
	return m
}

// configure says how long is waited: shorter than by default. modes go before that.
func configure(t *testing.T, m *machine.Machine, health string) {
	t.Helper()
	text := "[guard]\nsettle = \"1s\"\nwait = \"6s\"\nstuck = \"3s\"\n[health]\nsettle = \"6s\"\nlisten = \"3s\"\ncommand = \"3s\"\n" + health
	if err := os.MkdirAll(m.Path("/run/liveupd/liveupd.toml.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(m.Path("/run/liveupd/liveupd.toml.d/10-guard.toml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

const healthOff = "mode = \"off\"\n"

// reached tells whether the router gets an answer from an address of the machine.
func reached(m *machine.Machine, address string) bool {
	// A port on which nobody listens refuses: that is an answer.
	ask := fmt.Sprintf(`import socket, sys
try:
    socket.create_connection((%q, 9), 1)
except ConnectionRefusedError:
    sys.exit(0)
except OSError:
    pass
sys.exit(1)`, address)
	return m.Run("ip", "netns", "exec", "router", "python3", "-c", ask).Code == 0
}

func network(m *machine.Machine) string {
	return m.Run("sh", "-c", "ip addr; ip route; ip -d link show type bridge_slave; networkctl --no-pager status uplink0; systemctl --no-pager --failed").Stdout
}

var updates int

// update puts a tree of files into the machine and returns its place.
func update(t *testing.T, m *machine.Machine, changed map[string]string) string {
	t.Helper()
	up := fixture.NewTree(t, "bookworm")
	for name, content := range changed {
		mode := os.FileMode(0o644)
		if strings.HasPrefix(content, "#!") {
			mode = 0o755
		}
		up.File(name, content, mode)
	}
	updates++
	return up.CopyTo(m, fmt.Sprintf("/run/update-%d", updates))
}

func apply(t *testing.T, m *machine.Machine, dir string, flags ...string) *fixture.Output {
	t.Helper()
	return fixture.In(t, m, append([]string{"apply", "--yes", "--source", "tree:" + dir, "--allow-unsigned"}, flags...)...)
}

// result is what the report says became of a thing of the network.
func result(o *fixture.Output, what string) change.NetworkFinding {
	if o.Report != nil {
		for _, f := range o.Report.Network {
			if strings.Contains(f.What, what) {
				return f
			}
		}
	}
	return change.NetworkFinding{}
}

func treeOf(t *testing.T, m *machine.Machine) machine.Snapshot {
	t.Helper()
	return machine.TakeSnapshot(t, m.Image()+"/usr")
}

func sameTree(t *testing.T, before, after machine.Snapshot) {
	t.Helper()
	if diff := before.Diff(after); len(diff) > 0 {
		t.Errorf("the tree is not what it was:\n%s", strings.Join(diff[:min(len(diff), 20)], "\n"))
	}
}

// running is a liveupd that was started and not waited for.
type running struct {
	t      *testing.T
	m      *machine.Machine
	cmd    *exec.Cmd
	stdout bytes.Buffer
	stderr bytes.Buffer
	ended  chan struct{}
	old    []string
}

func start(t *testing.T, m *machine.Machine, args ...string) *running {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	r := &running{t: t, m: m, cmd: m.Command(ctx, append([]string{"/usr/local/bin/liveupd"}, args...)...), ended: make(chan struct{}), old: transactions(m)}
	r.cmd.Stdout, r.cmd.Stderr = &r.stdout, &r.stderr
	if err := r.cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	go func() {
		_ = r.cmd.Wait() // its exit code is looked at by whoever wants it
		close(r.ended)
	}()
	t.Cleanup(func() {
		cancel()
		<-r.ended
	})
	return r
}

func transactions(m *machine.Machine) []string {
	dirs, _ := filepath.Glob(filepath.Join(m.Image(), ".liveupd/tx/*"))
	return dirs
}

func (r *running) transaction() string {
	for _, dir := range transactions(r.m) {
		if !slices.Contains(r.old, dir) {
			return dir
		}
	}
	return ""
}

// state of the transaction that this run began, "" before.
func (r *running) state() string {
	b, _ := os.ReadFile(filepath.Join(r.transaction(), "state"))
	_, rest, _ := strings.Cut(string(b), `"state":"`)
	state, _, _ := strings.Cut(rest, `"`)
	return state
}

func (r *running) wait() machine.Result {
	r.t.Helper()
	<-r.ended
	return machine.Result{Stdout: r.stdout.String(), Stderr: r.stderr.String(), Code: r.cmd.ProcessState.ExitCode()}
}

// await polls until cond holds; the run's end, or a minute, ends the test.
func (r *running) await(what string, cond func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(time.Minute); !cond(); time.Sleep(100 * time.Microsecond) {
		select {
		case <-r.ended:
			got := r.wait()
			r.t.Fatalf("liveupd ended with %d before %s\n%s%s", got.Code, what, got.Stdout, got.Stderr)
		default:
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("waited a minute for %s", what)
		}
	}
}

// workers are the process of the transient unit and its child.
func (r *running) workers() []int {
	r.t.Helper()
	var found []int
	r.await("the workers", func() bool {
		outer, inner := 0, 0
		for _, pid := range r.m.Find("liveupd") {
			b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			switch argv := strings.Split(string(b), "\x00"); {
			case len(argv) > 1 && argv[1] == "worker":
				outer = pid
			case len(argv) > 1 && argv[1] == "worker-inside":
				inner = pid
			}
		}
		found = []int{outer, inner}
		return outer != 0 && inner != 0
	})
	return found
}

func stop(t *testing.T, pids []int) {
	t.Helper()
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Errorf("cannot stop %d: %v", pid, err)
		}
	}
}
