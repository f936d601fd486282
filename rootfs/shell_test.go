package rootfs

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What a script finds beside itself, sources by a variable or in a loop, and waits for.
func TestShellScripts(t *testing.T) {
	cases := []struct {
		name string
		fs   files
		want []string // scripts
	}{
		{"the script's own folder", files{
			"opt/run":  "#!/bin/sh\nHERE=$(dirname \"$0\")\n. \"$HERE/a.sh\"\n. \"${0%/*}/b.sh\"\nTOP=\"$(cd \"$(dirname \"$(readlink -f \"$0\")\")/..\" && pwd)\"\n. $TOP/opt/c.sh\n. `x`/d.sh\n",
			"opt/a.sh": "", "opt/b.sh": "", "opt/c.sh": "", "opt/d.sh": "",
		}, []string{"/opt/a.sh", "/opt/b.sh", "/opt/c.sh", "/opt/run"}},
		{"BASH_SOURCE of a part, a default, a name of its own", files{
			"opt/run":      "#!/bin/sh\n: ${LIB:=/opt/lib}\nsource ${LIB}/a.sh\n. \"${CONF:-/etc/conf}\"\n",
			"opt/lib/a.sh": ". \"$(dirname \"${BASH_SOURCE[0]}\")/b.sh\"\n", "opt/lib/b.sh": "", "etc/conf": "",
		}, []string{"/etc/conf", "/opt/lib/a.sh", "/opt/lib/b.sh", "/opt/run"}},
		{"a loop over a folder", files{
			"opt/run": "#!/bin/sh\nfor f in /etc/x.d/*.sh /etc/more; do\n  [ -r \"$f\" ] && . \"$f\"\ndone\n", "etc/x.d/1.sh": "", "etc/x.d/2.sh": "", "etc/x.d/no": "", "etc/more": "",
		}, []string{"/etc/more", "/etc/x.d/1.sh", "/etc/x.d/2.sh", "/opt/run"}},
		{"what a sourced file sets, and what the script becomes", files{
			"opt/run": "#!/bin/sh\n. /etc/default/x\nexec $DAEMON\n", "etc/default/x": "DAEMON=/opt/daemon.sh\n", "opt/daemon.sh": "#!/bin/sh\n",
		}, []string{"/etc/default/x", "/opt/daemon.sh", "/opt/run"}},
		{"the program that it ends with, and not the one in passing", files{
			"opt/run": "#!/bin/sh\n/opt/passing.sh\n/opt/last.sh --x\nexit $?\n", "opt/passing.sh": "#!/bin/sh\n", "opt/last.sh": "#!/bin/sh\n",
		}, []string{"/opt/last.sh", "/opt/run"}},
		{"the service's folder", files{"opt/run": "#!/bin/sh\n. ./a.sh\n", "srv/a.sh": "", "opt/a.sh": ""}, []string{"/opt/run", "/srv/a.sh"}},
	}
	for _, c := range cases {
		got, tree := serviceUses(t, "WorkingDirectory=/srv\nExecStart=/opt/run\n", c.fs)
		var scripts []string
		for _, s := range got {
			if p, ok := strings.CutPrefix(s, "script "); ok {
				scripts = append(scripts, p)
			}
		}
		slices.Sort(scripts)
		if d := cmp.Diff(c.want, scripts); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
		if len(tree.Warnings) > 0 {
			t.Errorf("%s: warnings %q", c.name, tree.Warnings)
		}
	}
}

// A program behind a wrapper is the service's program.
func TestWrappers(t *testing.T) {
	for _, line := range []string{
		"/usr/bin/nice -n 5 /opt/s.sh", "/usr/bin/env -i A=b /opt/s.sh", "/usr/bin/env -S /opt/s.sh x", "/usr/bin/setpriv --reuid 5 --clear-groups /opt/s.sh",
		"/usr/bin/runuser -u nobody -- /opt/s.sh", "/usr/bin/systemd-cat -t x /opt/s.sh", "/usr/bin/ionice -c2 -n 7 /opt/s.sh", "/usr/bin/dumb-init -- /opt/s.sh",
		"/usr/bin/nice /usr/bin/setpriv --nnp /opt/s.sh", "/bin/sh -c 'exec /opt/s.sh'", "/bin/sh -c '/opt/s.sh 2>&1 | cat'", "/bin/sh /opt/s.sh", "/usr/bin/timeout 5 /opt/s.sh",
	} {
		fs := files{"opt/s.sh": "#!/bin/sh\n", "usr/bin/cat": program()}
		for _, w := range []string{"setpriv", "runuser", "systemd-cat", "ionice", "dumb-init", "timeout"} {
			fs["usr/bin/"+w] = program()
		}
		got, _ := serviceUses(t, "ExecStart="+line+"\n", fs)
		if !slices.Contains(got, "script /opt/s.sh") {
			t.Errorf("%s uses %q; want the script behind it", line, got)
		}
	}
}

func FuzzFolderCommand(f *testing.F) {
	f.Add("$(cd \"$(dirname \"$0\")\" && pwd)")
	f.Add("${0%/*}/x")
	f.Fuzz(func(t *testing.T, s string) {
		_, n := shellVariable("$"+s, map[string]string{"0": "/a/b", "A": "b"})
		if n < 1 || n > len(s)+1 {
			t.Errorf("%q: %d bytes were read", s, n)
		}
	})
}
