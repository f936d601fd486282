package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// settleTime is how long clients go on after an upgrade has ended.
const settleTime = 10 * time.Second

// session is an ssh session that stays open over the night and says something all the time.
const session = `mkdir -p /root/.ssh && chmod 700 /root /root/.ssh && rm -f /root/.ssh/id
ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id && cp /root/.ssh/id.pub /root/.ssh/authorized_keys
exec ssh -i /root/.ssh/id -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR root@127.0.0.1 'while echo; do sleep 0.1; done'`

// night measures what the clients of three servers see while all that Debian has published
// for their machine is installed: by liveupd, and by unattended-upgrades with needrestart,
// which restarts what it finds. Each run has a machine of its own.
func (b *bench) night(roots string) error {
	from, err := filepath.EvalSymlinks(filepath.Join(roots, "night"))
	if err != nil {
		return fmt.Errorf("there is no root to upgrade (run tests/setup/root.sh night): %w", err)
	}
	base := filepath.Join(b.dir, "night-base")
	if _, err := tool("cp", "-a", from, base); err != nil {
		return err
	}
	count, err := layArchive(base, from)
	if err != nil {
		return err
	}
	if err := prepareNight(base, b.liveupd); err != nil {
		return err
	}
	contenders := []struct{ name, before, script string }{
		// 4: the plan has a host action, which is left to the operator.
		{"liveupd unattended", "/usr/local/bin/liveupd setup --yes", `/usr/local/bin/liveupd unattended --json; rc=$?; [ $rc = 0 ] || [ $rc = 4 ]`},
		{"unattended-upgrades, needrestart", "true", `apt-get -q update && unattended-upgrade -v`},
	}
	rows := map[string]*row{}
	var order []string
	add := func(what, contender, unit string, v float64) {
		key := what + contender
		if rows[key] == nil {
			rows[key] = &row{What: what, Contender: contender, Unit: unit}
			order = append(order, key)
		}
		rows[key].Samples = append(rows[key].Samples, v)
	}
	label := fmt.Sprintf("a night of %d packages", count)
	for i := range b.runs {
		for _, c := range contenders {
			n, err := b.oneNight(base, c.before, c.script)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			add(label, c.name, "ms", n.ms)
			add("packages installed in it", c.name, "", float64(n.installed))
			add("services interrupted in it", c.name, "", float64(len(n.interrupted)))
			for _, s := range n.clients {
				add(s.Name+": requests that failed", c.name, "", float64(s.Failed))
				add(s.Name+": longest gap", c.name, "ms", s.GapMS)
			}
			add("ssh: sessions that broke", c.name, "", float64(n.broken))
			fmt.Fprintf(os.Stderr, "bench: night, run %d of %d, %s: %+v\n", i+1, b.runs, c.name, n)
		}
	}
	for _, key := range order {
		b.rows = append(b.rows, *rows[key])
	}
	return removeAll(base)
}

// nightly is what one night brought.
type nightly struct {
	ms          float64
	installed   int
	interrupted []string // services of which the main process or the invocation is another one
	clients     []served
	broken      int // sessions
}

func (b *bench) oneNight(base, before, script string) (_ *nightly, err error) {
	root := filepath.Join(b.dir, "night")
	if err := removeAll(root); err != nil {
		return nil, err
	}
	g, err := b.boot(base, root, func(string) error { return nil })
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, g.Close(), removeAll(root)) }()
	if out, err := exec.Command("nsenter", g.enter("sh", "-uc", before)...).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%s: %w\n%s", before, err, out)
	}
	installed, err := installedIn(root)
	if err != nil {
		return nil, err
	}
	ask, err := b.startClients(g)
	if err != nil {
		return nil, err
	}
	defer ask.kill()
	ssh, err := startSession(g)
	if err != nil {
		return nil, err
	}
	defer ssh.kill()
	services, err := g.services()
	if err != nil {
		return nil, err
	}
	s, err := b.timed("nsenter", g.enter("env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8",
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "sh", "-uc", script)...)
	if err != nil {
		return nil, fmt.Errorf("%w\n%.2000s", err, s.out)
	}
	select {
	case <-time.After(settleTime):
	case <-b.ctx.Done():
		return nil, b.ctx.Err()
	}
	n := &nightly{ms: s.MS}
	if !ssh.runs() {
		n.broken = 1
	}
	after, err := g.services()
	if err != nil {
		return nil, err
	}
	for unit, id := range services {
		if after[unit] != id {
			n.interrupted = append(n.interrupted, unit)
		}
	}
	if n.clients, err = ask.end(); err != nil {
		return nil, err
	}
	now, err := installedIn(root)
	if err != nil {
		return nil, err
	}
	old := map[string]bool{}
	for line := range strings.Lines(installed) {
		old[strings.TrimSpace(line)] = true
	}
	for line := range strings.Lines(now) {
		if !old[strings.TrimSpace(line)] {
			n.installed++
		}
	}
	if n.installed == 0 {
		return nil, fmt.Errorf("it installed nothing:\n%.2000s", s.out)
	}
	return n, nil
}

// prepareNight puts liveupd into the root, lets its archive be one of Debian's own to
// unattended-upgrades, and needrestart restart what it finds, as Ubuntu's does.
func prepareNight(root, liveupd string) error {
	write := func(name, content string) error {
		name = filepath.Join(root, name)
		return errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(content), 0o644))
	}
	var err error
	for _, program := range []string{"liveupd", "liveupd-recover", "liveupd-sandbox"} {
		_, e := tool("install", "-m", "0755", filepath.Join(filepath.Dir(liveupd), program), filepath.Join(root, "usr/local/bin", program))
		err = errors.Join(err, e)
	}
	return errors.Join(err,
		write("etc/apt/apt.conf.d/99night", `Unattended-Upgrade::Origins-Pattern { "origin=Bench"; };
Unattended-Upgrade::Mail "";
Dpkg::Options { "--force-confold"; "--force-confdef"; };
`),
		write("etc/liveupd/liveupd.toml", "[unattended]\nenabled = true\n"),
		write("etc/needrestart/conf.d/night.conf", "$nrconf{restart} = 'a';\n"),
		write("srv/archive/Release", "Origin: Bench\nLabel: Bench\nSuite: stable\nCodename: bookworm\n"))
}

// services maps each running service to what another start of it would change.
func (g *guest) services() (map[string]string, error) {
	out, err := exec.Command("nsenter", g.enter("systemctl", "show", "--type=service", "--state=running", "-p", "Id,InvocationID,MainPID", "*")...).Output()
	if err != nil {
		return nil, fmt.Errorf("systemctl show: %w", err)
	}
	list := map[string]string{}
	for block := range strings.SplitSeq(string(out), "\n\n") {
		var id, state string
		for line := range strings.Lines(block) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			if key == "Id" {
				id = value
			} else {
				state += line
			}
		}
		// Those of sessions and of the upgrade itself come and go.
		if id != "" && !strings.HasPrefix(id, "user@") && !strings.HasPrefix(id, "run-") && !strings.HasPrefix(id, "liveupd-") {
			list[id] = state
		}
	}
	return list, nil
}

// asking is a program that runs beside an upgrade.
type asking struct {
	cmd   *exec.Cmd
	out   *bufio.Reader
	ended chan struct{}
}

func startBeside(cmd *exec.Cmd) (*asking, error) {
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &asking{cmd: cmd, out: bufio.NewReader(pipe), ended: make(chan struct{})}, nil
}

// startClients runs the clients in the machine's network.
func (b *bench) startClients(g *guest) (*asking, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	a, err := startBeside(exec.CommandContext(b.ctx, "nsenter", "-t", strconv.Itoa(g.leader), "-n", "--", self, clientsVerb))
	if err != nil {
		return nil, err
	}
	if line, err := a.out.ReadString('\n'); line != "served\n" {
		a.kill()
		return nil, fmt.Errorf("the clients are not served: %w", err)
	}
	return a, nil
}

// end tells the clients to end and gives what they saw.
func (a *asking) end() (list []served, err error) {
	if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return nil, err
	}
	err = json.NewDecoder(a.out).Decode(&list)
	return list, errors.Join(err, a.cmd.Wait())
}

// startSession opens an ssh session and waits until it speaks.
func startSession(g *guest) (*asking, error) {
	a, err := startBeside(exec.Command("nsenter", g.enter("sh", "-euc", session)...))
	if err != nil {
		return nil, err
	}
	if _, err := a.out.ReadString('\n'); err != nil {
		a.kill()
		return nil, fmt.Errorf("no ssh session: %w", err)
	}
	go func() {
		defer close(a.ended)
		for {
			if _, err := a.out.ReadString('\n'); err != nil {
				return
			}
		}
	}()
	return a, nil
}

func (a *asking) runs() bool {
	select {
	case <-a.ended:
		return false
	default:
		return true
	}
}

func (a *asking) kill() {
	_ = a.cmd.Process.Kill()
	_ = a.cmd.Wait() // it may have been waited for
}
