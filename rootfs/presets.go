package rootfs

import (
	"path"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// presetDirs hold the presets of system units, highest first (systemd.preset(5)).
var presetDirs = []string{
	"/etc/systemd/system-preset", "/run/systemd/system-preset",
	"/usr/local/lib/systemd/system-preset", "/usr/lib/systemd/system-preset", "/lib/systemd/system-preset",
}

// touched are the units of which somebody has settled whether they are enabled, or
// how they run, wherever they come from: those with drop-ins of the
// administrator's, and those of which deb-systemd-helper(1) keeps a state.
func (s *unitSet) touched() map[string]bool {
	out := map[string]bool{}
	for p := range s.subdirs {
		if name, ok := strings.CutSuffix(path.Base(p), ".d"); ok && validName(name) && strings.HasPrefix(p, "/etc/") {
			out[name] = true
		}
	}
	for _, dir := range []string{"/var/lib/systemd/deb-systemd-helper-enabled", "/var/lib/systemd/deb-systemd-helper-masked"} {
		names, err := s.t.ReadDir(dir)
		s.warn.absent(err, "read", dir)
		for _, n := range names {
			if n = strings.TrimSuffix(n, ".dsh-also"); validName(n) {
				out[n] = true
			}
		}
	}
	return out
}

// readPresets lists the rules in the order in which they are asked: by the name
// of their file over all folders, of equal names the one in the highest.
func readPresets(t *tree, run bool, warn *warnings) []change.Preset {
	chosen := map[string]string{}
	for _, dir := range presetDirs {
		if strings.HasPrefix(dir, "/run/") && !run {
			continue
		}
		names, err := t.ReadDir(dir)
		if err != nil {
			warn.absent(err, "read presets", dir)
			continue
		}
		for _, n := range names {
			if strings.HasSuffix(n, ".preset") && chosen[n] == "" {
				chosen[n] = join(dir, n)
			}
		}
	}
	files := make([]string, 0, len(chosen))
	for _, p := range chosen {
		files = append(files, p)
	}
	slices.SortFunc(files, func(a, b string) int { return strings.Compare(path.Base(a), path.Base(b)) })
	var out []change.Preset
	for _, p := range files {
		if target, err := t.Readlink(p); err == nil && path.Clean(target) == "/dev/null" {
			continue
		}
		b, err := t.ReadFile(p)
		if err != nil {
			warn.add("cannot read preset file %s: %v", p, err)
			continue
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) < 2 || f[0][0] == '#' || f[0][0] == ';' {
				continue
			}
			switch f[0] {
			case "enable", "disable", "ignore":
				out = append(out, change.Preset{Do: f[0], Pattern: f[1], Instances: f[2:], File: p})
			default:
				warn.add("%s: a line that begins with %q is ignored", p, f[0])
			}
		}
	}
	return out
}
