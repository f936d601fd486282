package vm

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Config says what machine to start.
type Config struct {
	// Kernel and Initrd are files of the host, Append is the command line. The console is ttyS0; it is
	// added to the command line.
	Kernel, Initrd, Append string
	Drives                 []Drive
	MemoryMB               int // 512 where it is 0
	CPUs                   int // 1 where it is 0
	// Incoming is a machine's state that Save wrote: the machine goes on from there and does not boot. All
	// else but the contents of Drives must be as it was.
	Incoming string
	// Restart: a guest that reboots is started again. Otherwise its reboot ends the machine.
	Restart bool
	// Arguments are further ones for qemu.
	Arguments []string
}

// Machine is a virtual machine that runs. Its methods may be called from any goroutine.
type Machine struct {
	t      testing.TB
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	exited chan struct{}
	err    error // how qemu ended, when exited is closed
	stderr bytes.Buffer

	mu      sync.Mutex
	console bytes.Buffer
	grown   chan struct{} // closed and made anew at each output, and at the end of it
	read    int           // what WaitFor has passed

	qmp struct {
		sync.Mutex
		conn net.Conn
		dec  *json.Decoder
		path string
	}
}

// Start starts a machine, and ends it with the test. It skips the test where machines cannot run.
func Start(t testing.TB, c Config) *Machine {
	t.Helper()
	Require(t)
	dir, err := os.MkdirTemp("", "vm-") // a socket's path has 107 bytes: t.TempDir may be too long
	if err != nil {
		t.Fatal(err)
	}
	m := &Machine{t: t, exited: make(chan struct{}), grown: make(chan struct{})}
	t.Cleanup(func() { os.RemoveAll(dir) })
	m.qmp.path = filepath.Join(dir, "qmp")
	args, err := c.arguments(m.qmp.path)
	if err != nil {
		t.Fatal(err)
	}
	m.cmd = exec.Command(program, args...)
	// The machine must not outlive a test binary that is killed.
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	m.cmd.Stderr = &m.stderr
	stdout, err := m.cmd.StdoutPipe()
	if err == nil {
		m.stdin, err = m.cmd.StdinPipe()
	}
	if err == nil {
		err = m.cmd.Start()
	}
	if err != nil {
		t.Fatalf("cannot start a virtual machine: %v", err)
	}
	go m.follow(stdout)
	t.Cleanup(m.Kill)
	if c.Incoming != "" {
		m.resume()
	}
	return m
}

func (c Config) arguments(qmp string) ([]string, error) {
	if c.MemoryMB == 0 {
		c.MemoryMB = 512
	}
	if c.CPUs == 0 {
		// With two, qemu's emulation lets one run what the other is rewriting (the kernel patches its
		// own code at boot), and one boot in a hundred ends in an Oops: int3.
		c.CPUs = 1
	}
	args := []string{
		// Without cmpxchg16b, whose emulation in qemu 7.2 spoils the flags now and then: one boot
		// in ten ended with a fault where the kernel's allocator uses it.
		"-nodefaults", "-no-user-config", "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max,cx16=off",
		"-smp", fmt.Sprint(c.CPUs), "-m", fmt.Sprint(c.MemoryMB), "-display", "none",
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-qmp", "unix:" + qmp + ",server=on,wait=off",
		"-device", "virtio-rng-pci",
		"-kernel", c.Kernel, "-append", strings.TrimSpace("console=ttyS0 " + c.Append),
	}
	if c.Initrd != "" {
		args = append(args, "-initrd", c.Initrd)
	}
	if !c.Restart {
		args = append(args, "-no-reboot")
	}
	for i, d := range c.Drives {
		if d.Log != "" {
			if err := os.WriteFile(d.Log, nil, 0o600); err != nil {
				return nil, err
			}
		}
		args = append(args, d.arguments(i)...)
	}
	if c.Incoming != "" {
		args = append(args, "-incoming", "exec:cat "+c.Incoming)
	}
	return append(args, c.Arguments...), nil
}

// follow reads the console to its end.
func (m *Machine) follow(console io.Reader) {
	buf := make([]byte, 4096)
	for {
		n, err := console.Read(buf)
		m.mu.Lock()
		m.console.Write(buf[:n])
		close(m.grown)
		m.grown = make(chan struct{})
		m.mu.Unlock()
		if err != nil {
			break
		}
	}
	m.err = m.cmd.Wait()
	close(m.exited)
}

// Console is all that the machine has printed on its serial console.
func (m *Machine) Console() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.console.String()
}

// WaitFor waits until the console has printed what the expression matches, after what the last call
// has matched, and gives the match and its groups. It fails the test where the machine ends before, or in that time
// does not print it.
func (m *Machine) WaitFor(expression string, limit time.Duration) []string {
	m.t.Helper()
	match, err := m.Await(expression, limit)
	if err != nil {
		m.t.Fatal(err)
	}
	return match
}

// Await is WaitFor with an error.
func (m *Machine) Await(expression string, limit time.Duration) ([]string, error) {
	re := regexp.MustCompile(expression)
	deadline := time.After(limit)
	for ended := false; ; {
		m.mu.Lock()
		rest, grown := m.console.Bytes()[m.read:], m.grown
		if at := re.FindSubmatchIndex(rest); at != nil {
			var match []string
			for _, group := range re.FindSubmatch(rest) {
				match = append(match, string(group))
			}
			m.read += at[1]
			m.mu.Unlock()
			return match, nil
		}
		m.mu.Unlock()
		if ended {
			how := "powered off"
			if m.err != nil {
				how = m.err.Error()
			}
			return nil, fmt.Errorf("the virtual machine ended (%s) and did not print %q\n%s%s", how, expression, m.Console(), m.stderr.String())
		}
		select {
		case <-grown:
		case <-m.exited:
			ended = true
		case <-deadline:
			return nil, fmt.Errorf("the virtual machine did not print %q within %v\n%s", expression, limit, m.Console())
		}
	}
}

// Send types text on the serial console.
func (m *Machine) Send(text string) {
	m.t.Helper()
	if _, err := io.WriteString(m.stdin, text); err != nil {
		m.t.Fatalf("cannot type to the virtual machine: %v\n%s", err, m.stderr.String())
	}
}

// Kill pulls the plug: SIGKILL for qemu. What the guest wrote lies in the host's page cache then,
// whether it flushed it or not; the log of a drive tells the two apart.
func (m *Machine) Kill() {
	select {
	case <-m.exited:
		return
	default:
	}
	_ = m.cmd.Process.Kill() // it may have just ended
	<-m.exited
}

// Wait waits until the guest has powered off, and fails the test where qemu fails or goes on for longer.
func (m *Machine) Wait(limit time.Duration) {
	m.t.Helper()
	select {
	case <-m.exited:
	case <-time.After(limit):
		m.t.Fatalf("the virtual machine did not end within %v\n%s", limit, m.Console())
	}
	if m.err != nil {
		m.t.Fatalf("the virtual machine failed: %v\n%s\n%s", m.err, m.stderr.String(), m.Console())
	}
}

// Exited is closed when the machine has ended.
func (m *Machine) Exited() <-chan struct{} { return m.exited }
