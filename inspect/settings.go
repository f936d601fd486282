package inspect

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// Settings reads the running kernel, as far as an update's own settings touch
// it: the values of the named sysctl keys, in which wildcards stand for the
// keys that there are, and the state of the named modules.
func Settings(keys, modules []string) change.HostFacts {
	f := change.HostFacts{Kernel: sys.KernelRelease()}
	const top = "/proc/sys"
	for _, key := range keys {
		// In names below /proc/sys the two separators change their places.
		pattern := filepath.Join(top, path.Clean("/"+strings.Map(swap, key)))
		found, err := filepath.Glob(pattern)
		if err != nil {
			continue
		}
		for _, name := range found {
			if st, err := os.Stat(name); err != nil || !st.Mode().IsRegular() || st.Mode().Perm()&0o444 == 0 {
				continue
			}
			b, err := os.ReadFile(name)
			if err != nil {
				continue
			}
			if f.Sysctl == nil {
				f.Sysctl = map[string]string{}
			}
			rel, err := filepath.Rel(top, name)
			if err == nil {
				f.Sysctl[strings.Map(swap, rel)] = strings.TrimSpace(string(b))
			}
		}
	}
	if len(modules) > 0 {
		f.Modules = moduleStates(f.Kernel, modules)
	}
	b, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	f.AppArmor = err == nil && bytes.HasPrefix(b, []byte("Y"))
	_, err = os.Stat("/sys/fs/selinux/policyvers")
	f.SELinux = err == nil
	return f
}

func swap(r rune) rune {
	switch r {
	case '.':
		return '/'
	case '/':
		return '.'
	}
	return r
}

// moduleStates tells of each module whether it is loaded, builtin, available or absent.
func moduleStates(release string, names []string) map[string]string {
	out := map[string]string{}
	for _, n := range names {
		out[n] = "absent"
		if _, err := os.Stat("/sys/module/" + n + "/initstate"); err == nil {
			out[n] = "loaded"
		}
	}
	dir := "/lib/modules/" + release + "/"
	// A line of these begins with the path of the module.
	for _, list := range []struct{ file, state string }{{"modules.builtin", "builtin"}, {"modules.dep", "available"}} {
		for line := range readLines(dir + list.file) {
			name, _, _ := strings.Cut(line, ":")
			base, _, _ := strings.Cut(path.Base(strings.TrimSpace(name)), ".ko")
			base = strings.ReplaceAll(base, "-", "_")
			if out[base] == "absent" {
				out[base] = list.state
			}
		}
	}
	if !slices.Contains(values(out), "absent") {
		return out
	}
	// "alias PATTERN MODULE"
	for line := range readLines(dir + "modules.alias") {
		f := strings.Fields(line)
		if len(f) != 3 || f[0] != "alias" {
			continue
		}
		for _, n := range names {
			if out[n] != "absent" {
				continue
			}
			for _, spelled := range []string{n, strings.ReplaceAll(n, "_", "-")} {
				if ok, err := path.Match(f[1], spelled); err == nil && ok {
					out[n] = "available"
				}
			}
		}
	}
	return out
}

func values(m map[string]string) []string {
	out := make([]string, 0, len(m))
	for _, v := range m {
		out = append(out, v)
	}
	return out
}

func readLines(file string) func(func(string) bool) {
	b, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		b = nil // what cannot be read is not known to be there
	}
	return strings.Lines(string(b))
}
