package vm

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

// qmpLimit is how long an answer may take.
const qmpLimit = 2 * time.Minute

// QMP runs a command of qemu's machine protocol and returns what it returns. An error fails the test.
func (m *Machine) QMP(command string, arguments map[string]any) json.RawMessage {
	m.t.Helper()
	answer, err := m.execute(command, arguments)
	if err != nil {
		m.t.Fatalf("cannot run %s: %v\n%s", command, err, m.stderr.String())
	}
	return answer
}

// reply is what qemu says: a greeting, an event, or an answer.
type reply struct {
	Greeting json.RawMessage `json:"QMP"`
	Event    string          `json:"event"`
	Return   json.RawMessage `json:"return"`
	Error    *struct {
		Class, Desc string
	} `json:"error"`
}

func (m *Machine) execute(command string, arguments map[string]any) (json.RawMessage, error) {
	m.qmp.Lock()
	defer m.qmp.Unlock()
	if m.qmp.conn == nil {
		if err := m.connect(); err != nil {
			return nil, err
		}
	}
	return m.ask(command, arguments)
}

func (m *Machine) connect() error {
	var conn net.Conn
	err := errors.New("it never listened")
	for deadline := time.Now().Add(qmpLimit); err != nil; {
		if conn, err = net.Dial("unix", m.qmp.path); err == nil {
			break
		}
		select {
		case <-m.exited:
			return fmt.Errorf("the virtual machine has ended: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return err
		}
	}
	m.t.Cleanup(func() { conn.Close() })
	m.qmp.conn, m.qmp.dec = conn, json.NewDecoder(conn)
	_, err = m.ask("qmp_capabilities", nil)
	return err
}

func (m *Machine) ask(command string, arguments map[string]any) (json.RawMessage, error) {
	request := map[string]any{"execute": command}
	if arguments != nil {
		request["arguments"] = arguments
	}
	if err := m.qmp.conn.SetDeadline(time.Now().Add(qmpLimit)); err != nil {
		return nil, err
	}
	if err := json.NewEncoder(m.qmp.conn).Encode(request); err != nil {
		return nil, err
	}
	for {
		var r reply
		if err := m.qmp.dec.Decode(&r); err != nil {
			return nil, err
		}
		switch {
		case r.Error != nil:
			return nil, fmt.Errorf("%s: %s", r.Error.Class, r.Error.Desc)
		case r.Return != nil:
			return r.Return, nil
		}
	}
}

// Pause stops the guest's processors; what it has asked its disks for is done first.
func (m *Machine) Pause() {
	m.t.Helper()
	m.QMP("stop", nil)
}

// Save pauses the machine and writes its state (memory and devices, not the disks) to a file, from which Config.Incoming goes on
// with copies of the disks as they are now.
func (m *Machine) Save(file string) {
	m.t.Helper()
	m.Pause()
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		m.t.Fatal(err)
	}
	m.QMP("migrate", map[string]any{"uri": "exec:cat > " + file})
	for deadline := time.Now().Add(qmpLimit); ; {
		var info struct {
			Status string `json:"status"`
			Detail string `json:"error-desc"`
		}
		if err := json.Unmarshal(m.QMP("query-migrate", nil), &info); err != nil {
			m.t.Fatal(err)
		}
		switch info.Status {
		case "completed":
			return
		case "failed", "cancelled":
			m.t.Fatalf("cannot save the machine's state: %s %s", info.Status, info.Detail)
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("cannot save the machine's state within %v: %s", qmpLimit, info.Status)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// resume lets a machine that came from a state go on: it was paused when it was saved.
func (m *Machine) resume() {
	m.t.Helper()
	for deadline := time.Now().Add(qmpLimit); ; {
		var is struct {
			Status string `json:"status"`
		}
		if err := json.Unmarshal(m.QMP("query-status", nil), &is); err != nil {
			m.t.Fatal(err)
		}
		if is.Status == "paused" {
			m.QMP("cont", nil)
			return
		}
		if is.Status != "inmigrate" || time.Now().After(deadline) {
			m.t.Fatalf("cannot go on from a saved state: the machine is %s", is.Status)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
