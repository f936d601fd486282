package systemd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestUserUID(t *testing.T) {
	for unit, want := range map[string]int64{
		"user@1000.service": 1000, "user@0.service": 0, "user@4294967295.service": 4294967295,
		"user@.service": -1, "user@alice.service": -1, "user@01.service": -1, "user@-1.service": -1, "user@4294967296.service": -1,
		"user@1000.socket": -1, "user-runtime-dir@1000.service": -1, "user@1000/x.service": -1,
	} {
		uid, ok := UserUID(unit)
		if ok != (want >= 0) || ok && int64(uid) != want {
			t.Errorf("UserUID(%q) = %d, %v; want %d", unit, uid, ok, want)
		}
	}
}

// stage makes a folder of users' runtime folders with one user's in it, and a socket at which
// this process listens in the place of the manager's.
func stage(t *testing.T, uid int) (top string, l net.Listener) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: files of another user are made")
	}
	top = t.TempDir()
	dir := filepath.Join(top, fmt.Sprint(uid), "systemd")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "private"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	for _, p := range []string{filepath.Dir(dir), dir, filepath.Join(dir, "private")} {
		if err := os.Chown(p, uid, uid); err != nil {
			t.Fatal(err)
		}
	}
	return top, l
}

// What lies in the place of a manager's socket is refused where it is not the user's.
func TestUserSocket(t *testing.T) {
	const uid = 12345
	for _, c := range []struct {
		name   string
		change func(top, dir string) error
		theirs bool
	}{
		{"as it should be", func(string, string) error { return nil }, true},
		{"a link to another's socket", func(top, dir string) error {
			return errors.Join(os.Rename(filepath.Join(dir, "systemd"), filepath.Join(top, "other")), os.Symlink(filepath.Join(top, "other"), filepath.Join(dir, "systemd")))
		}, false},
		{"the socket itself is a link", func(_, dir string) error {
			return errors.Join(os.Rename(filepath.Join(dir, "systemd/private"), filepath.Join(dir, "kept")), os.Symlink("../kept", filepath.Join(dir, "systemd/private")))
		}, false},
		{"another user's socket", func(_, dir string) error { return os.Chown(filepath.Join(dir, "systemd/private"), 0, 0) }, false},
		{"another user's folder", func(_, dir string) error { return os.Chown(dir, 0, 0) }, false},
		{"the folder is a link", func(top, dir string) error {
			return errors.Join(os.Rename(dir, filepath.Join(top, "away")), os.Symlink("away", dir))
		}, false},
		{"a file", func(_, dir string) error {
			at := filepath.Join(dir, "systemd/private")
			return errors.Join(os.Remove(at), os.WriteFile(at, nil, 0o600), os.Chown(at, uid, uid))
		}, false},
		{"a FIFO", func(_, dir string) error {
			at := filepath.Join(dir, "systemd/private")
			return errors.Join(os.Remove(at), syscall.Mkfifo(at, 0o600), os.Chown(at, uid, uid))
		}, false},
		{"another file system", func(_, dir string) error {
			err := syscall.Mount("tmpfs", filepath.Join(dir, "systemd"), "tmpfs", 0, "")
			return err
		}, false},
		{"others may write where the folders are", func(top, _ string) error { return os.Chmod(top, 0o777) }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			top, _ := stage(t, uid)
			dir := filepath.Join(top, fmt.Sprint(uid))
			if err := c.change(top, dir); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = syscall.Unmount(filepath.Join(dir, "systemd"), 0) }) // one case mounts there
			fd, err := (&UserManager{UID: uid, Dir: top}).socket()
			if err == nil {
				fd.Close()
			}
			if (err == nil) != c.theirs {
				t.Errorf("socket() = %v; want that it is the user's: %v", err, c.theirs)
			}
		})
	}
}

// Who listens there must be the manager: this process is neither of that user, nor,
// as the control shows, the process that is asked for.
func TestUserPeer(t *testing.T) {
	dial := func(uid, pid int) error {
		top, l := stage(t, uid)
		heard := make(chan string, 1)
		go func() {
			conn, err := l.Accept()
			if err != nil {
				heard <- ""
				return
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(2 * time.Second)) // nothing may ever come
			line, _ := bufio.NewReader(conn).ReadString('\n')
			heard <- line
		}()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_, err := ConnectUser(ctx, UserManager{UID: uint32(uid), PID: pid, Dir: top})
		said := <-heard
		if err != nil && errors.Is(err, ErrNotTheirs) && said != "" {
			t.Errorf("who was refused was told %q", said)
		}
		if !errors.Is(err, ErrNotTheirs) && !strings.Contains(said, "AUTH") {
			t.Errorf("the peer was taken for the manager and told %q", said)
		}
		return err
	}
	if err := dial(12345, os.Getpid()); !errors.Is(err, ErrNotTheirs) {
		t.Errorf("a server of root in the place of a user's manager: %v", err)
	}
	if err := dial(0, os.Getpid()+1); !errors.Is(err, ErrNotTheirs) {
		t.Errorf("another process of the user: %v", err)
	}
	// The control: with the right user and process it is spoken to, and its silence is an error of another kind.
	if err := dial(0, os.Getpid()); err == nil || errors.Is(err, ErrNotTheirs) {
		t.Errorf("the process itself: %v", err)
	}
}

// A manager that never answers, or never stops talking, ends with the context and the limit.
func TestUserBounded(t *testing.T) {
	top, l := stage(t, 0)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close() //nolint:gocritic // held open until the listener goes
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if _, err := ConnectUser(ctx, UserManager{UID: 0, PID: os.Getpid(), Dir: top}); err == nil {
		t.Error("a manager that says nothing is connected to")
	}
	b := &bounded{Conn: talker{}, left: 10}
	buf := make([]byte, 4)
	n := 0
	for {
		k, err := b.Read(buf)
		n += k
		if err != nil {
			break
		}
	}
	if n != 10 {
		t.Errorf("%d bytes were read; want 10", n)
	}
}

type talker struct{ net.Conn }

func (talker) Read(p []byte) (int, error) { return len(p), nil }
