package peers

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The services of the machine. Each stands for one way in which a service depends on a
// file; all are made of what Debian ships, for the machine has no compiler.
var services = map[string]string{
	"usr/lib/systemd/system/plain.service":     unit("A service", "ExecStart=/usr/bin/sleep infinity"),
	"usr/lib/systemd/system/needs.service":     "[Unit]\nDescription=Needs another\nRequires=pymod.service\nAfter=pymod.service\n\n[Service]\nExecStart=/usr/bin/sleep infinity\n\n[Install]\nWantedBy=multi-user.target\n",
	"usr/lib/systemd/system/pymod.service":     unit("Imports a module", "ExecStart=/usr/bin/python3 /usr/lib/pymod/main.py"),
	"usr/lib/pymod/main.py":                    "import threading, greeting\ngreeting.hello()\nthreading.Event().wait()\n",
	"usr/lib/pymod/greeting/__init__.py":       "from .words import hello\n",
	"usr/lib/pymod/greeting/words.py":          "def hello():\n    print('hello 1', flush=True)\n",
	"usr/lib/pymod/greeting/unused.py":         "print('never')\n",
	"usr/lib/systemd/system/plmod.service":     unit("Uses a Perl module", "ExecStart=/usr/bin/perl /usr/lib/plmod/main.pl"),
	"usr/lib/plmod/main.pl":                    "use strict;\nuse lib '/usr/lib/plmod';\nuse Greeting;\nGreeting::hello();\nsleep 1 while 1;\n",
	"usr/lib/plmod/Greeting.pm":                "package Greeting;\nsub hello { print \"hello 1\\n\" }\n1;\n",
	"usr/lib/systemd/system/shell.service":     unit("A shell script", "ExecStart=/usr/lib/shell/main"),
	"usr/lib/shell/main":                       "#!/bin/sh\n. /usr/lib/shell/common.sh\nwhile :; do sleep 1000; done\n",
	"usr/lib/shell/common.sh":                  "greeting=hello\n",
	"usr/lib/systemd/system/plugin.service":    unit("Loads a plug-in", `ExecStart=/usr/bin/python3 -c "import ctypes, threading; ctypes.CDLL('/opt/plugin/libplug.so'); threading.Event().wait()"`),
	"usr/lib/systemd/system/envfile.service":   unit("Reads an environment file", "EnvironmentFile=/etc/envfile.conf\nExecStart=/usr/bin/sleep infinity"),
	"etc/envfile.conf":                         "COLOUR=green\n",
	"usr/lib/systemd/system/secret.service":    unit("Has a credential", "LoadCredential=key:/etc/secret.key\nExecStart=/usr/bin/sleep infinity"),
	"etc/secret.key":                           "one\n",
	"usr/lib/systemd/system/bound.service":     unit("Has a file mounted into it", "BindReadOnlyPaths=/etc/bound.conf:/run/bound.conf\nExecStart=/usr/bin/sleep infinity"),
	"etc/bound.conf":                           "one\n",
	"usr/lib/systemd/system/watched.service":   unit("Declares a file", "X-Liveupd-Watch=/etc/watched.conf\nExecStart=/usr/bin/sleep infinity"),
	"etc/watched.conf":                         "one\n",
	"usr/lib/systemd/system/jit.service":       unit("Runs code that it made", `ExecStart=/usr/bin/python3 /usr/lib/jit/main.py`),
	"usr/lib/jit/main.py":                      jit,
	"usr/lib/systemd/system/private.service":   unit("With a file system of its own", "PrivateTmp=yes\nProtectSystem=strict\nExecStart=/usr/bin/python3 -c 'import ssl, threading; threading.Event().wait()'"),
	"usr/lib/systemd/system/alt.service":       unit("Runs what an alternative names", "ExecStart=/usr/bin/alttool infinity"),
	"usr/lib/systemd/system/cred.service":      unit("A set-id helper runs in it", `ExecStart=/usr/bin/sh -c "su nobody -s /bin/sh -c 'sleep infinity'; true"`),
	"usr/lib/systemd/system/once.service":      "[Unit]\nDescription=A oneshot\n\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/usr/lib/once/run\n\n[Install]\nWantedBy=multi-user.target\n",
	"usr/lib/once/run":                         "#!/bin/sh\ntrue\n",
	"usr/lib/systemd/system/inst@.service":     unit("An instance", "ExecStart=/usr/bin/sleep 100%i000"),
	"usr/lib/systemd/system/beat.service":      "[Unit]\nDescription=Beats\n\n[Service]\nType=oneshot\nExecStart=/usr/bin/true\n",
	"usr/lib/systemd/system/beat.timer":        "[Unit]\nDescription=Beats daily\n\n[Timer]\nOnCalendar=daily\n\n[Install]\nWantedBy=timers.target\n",
	"usr/lib/systemd/system/door.socket":       "[Unit]\nDescription=A door\n\n[Socket]\nListenStream=/run/door\n\n[Install]\nWantedBy=sockets.target\n",
	"usr/lib/systemd/system/door.service":      "[Unit]\nDescription=Behind the door\n\n[Service]\nExecStart=/usr/bin/sleep infinity\n\n[Install]\nWantedBy=multi-user.target\n",
	"usr/lib/systemd/system/srv-scratch.mount": "[Unit]\nDescription=Scratch\n\n[Mount]\nWhat=scratch\nWhere=/srv/scratch\nType=tmpfs\nOptions=size=1m\n\n[Install]\nWantedBy=multi-user.target\n",
	"usr/lib/systemd/system/boxed.service":     unit("Has a root of its own", "RootDirectory=/srv/box\nExecStart=/bin/busybox sleep 1000000"),
	"usr/lib/systemd/system/asleep.service":    "[Unit]\nDescription=Does not run\n\n[Service]\nExecStart=/usr/bin/python3 /usr/lib/pymod/asleep.py\n",
	"usr/lib/pymod/asleep.py":                  "print('asleep')\n",
	"usr/lib/systemd/user/userapp.service":     "[Unit]\nDescription=A user's service\n\n[Service]\nExecStart=/usr/bin/python3 /usr/lib/userapp/main.py\n\n[Install]\nWantedBy=default.target\n",
	"usr/lib/userapp/main.py":                  "import threading, part\nthreading.Event().wait()\n",
	"usr/lib/userapp/part.py":                  "x = 1\n",
}

// jit has code in a deleted file of /tmp and in memory that never had a name.
const jit = `import ctypes, mmap, os, threading
keep = []
for fd in (os.memfd_create("jit"), os.open("/tmp/jit-code", os.O_RDWR | os.O_CREAT, 0o700)):
    os.ftruncate(fd, 4096)
    keep.append(mmap.mmap(fd, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC))
os.unlink("/tmp/jit-code")
threading.Event().wait()
`

func unit(description, body string) string {
	return fmt.Sprintf("[Unit]\nDescription=%s\n\n[Service]\n%s\n\n[Install]\nWantedBy=multi-user.target\n", description, body)
}

const (
	libssl = "usr/lib/x86_64-linux-gnu/libssl.so.3"
	libz   = "usr/lib/x86_64-linux-gnu/libz.so.1"
)

// lay puts the services into a root and enables those that say where.
func lay(root string) error {
	for name, content := range services {
		mode := os.FileMode(0o644)
		if strings.HasPrefix(content, "#!") {
			mode = 0o755
		}
		if err := write(root, name, content, mode); err != nil {
			return err
		}
		for line := range strings.Lines(content) {
			target, ok := strings.CutPrefix(strings.TrimSpace(line), "WantedBy=")
			if !ok {
				continue
			}
			names := []string{filepath.Base(name)}
			if names[0] == "inst@.service" {
				names = []string{"inst@1.service", "inst@2.service"}
			}
			for _, n := range names {
				if err := link(root, "etc/systemd/"+filepath.Base(filepath.Dir(name))+"/"+target+".wants/"+n, "/"+name); err != nil {
					return err
				}
			}
		}
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return fmt.Errorf("needs busybox (run tests/setup/install.sh): %w", err)
	}
	plug, err := os.ReadFile(filepath.Join(root, libz))
	if err != nil {
		return err
	}
	sleep, err := os.ReadFile(filepath.Join(root, "usr/bin/sleep"))
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		"srv/box/bin/busybox": busybox, "opt/plugin/libplug.so": plug, "opt/plugin/idle.so": plug,
		"opt/alt1/tool": sleep, "opt/alt2/tool": append(sleep, 0),
	} {
		if err := write(root, name, string(content), 0o755); err != nil {
			return err
		}
	}
	for _, dir := range []string{"srv/scratch", "srv/box/proc", "srv/box/sys", "srv/box/dev", "srv/box/run", "srv/box/tmp", "srv/box/etc", "srv/box/usr", "srv/box/var/tmp"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	return errors.Join(
		link(root, "etc/alternatives/alttool", "/opt/alt1/tool"), link(root, "usr/bin/alttool", "/etc/alternatives/alttool"))
}

func write(root, name, content string, mode os.FileMode) error {
	at := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		return err
	}
	return os.WriteFile(at, []byte(content), mode)
}

func link(root, name, to string) error {
	if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
		return err
	}
	return os.Symlink(to, filepath.Join(root, name))
}

// rebuilt is an ELF object with another build-id, as a new build of a library has.
func rebuilt(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	note := f.Section(".note.gnu.build-id")
	if note == nil {
		t.Fatalf("%s has no build-id", path)
	}
	b[note.Offset+note.FileSize-1] ^= 1
	return string(b)
}
