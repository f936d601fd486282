package apt

import (
	"bytes"
	"cmp"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// StatusPath is dpkg's database of what is installed (dpkg(1), FILES).
const StatusPath = "/var/lib/dpkg/status"

// Installed reads a status file: versions by name and architecture, of packages that
// are not only left with their configuration.
func Installed(status []byte) map[string]change.Package {
	out := map[string]change.Package{}
	var p change.Package
	installed := false
	add := func() {
		if installed && p.Name != "" {
			out[p.Name+":"+p.Arch] = p
		}
		p, installed = change.Package{}, false
	}
	for full := range bytes.Lines(status) {
		line := string(bytes.TrimRight(full, "\r\n"))
		if line == "" {
			add()
			continue
		}
		if line[0] == ' ' {
			continue
		}
		key, val, _ := strings.Cut(line, ":")
		switch val = strings.TrimSpace(val); key {
		case "Package":
			p.Name = val
		case "Architecture":
			p.Arch = val
		case "Version":
			p.To = val
		case "Status":
			f := strings.Fields(val)
			installed = len(f) == 3 && f[2] != "config-files" && f[2] != "not-installed"
		}
	}
	add()
	return out
}

// Changed lists what differs between two status files, sorted by name.
func Changed(before, after []byte) []change.Package {
	old, now := Installed(before), Installed(after)
	var out []change.Package
	for key, p := range now {
		switch was, ok := old[key]; {
		case !ok:
			out = append(out, p)
		case was.To != p.To:
			p.From = was.To
			out = append(out, p)
		}
	}
	for key, was := range old {
		if _, ok := now[key]; !ok {
			out = append(out, change.Package{Name: was.Name, Arch: was.Arch, From: was.To})
		}
	}
	slices.SortFunc(out, func(a, b change.Package) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Arch, b.Arch))
	})
	return out
}

// Finished lists the packages that one status file has unpacked or half-configured, or with
// triggers that wait, and the other as installed, in the same version; sorted by name.
func Finished(before, after []byte) []string {
	old, now := statuses(before), statuses(after)
	var out []string
	for key, was := range old {
		if was != now[key] && strings.HasPrefix(now[key], "installed ") && was[strings.IndexByte(was, ' '):] == now[key][len("installed"):] {
			out = append(out, key)
		}
	}
	slices.Sort(out)
	return out
}

// statuses are "STATE VERSION" by name, with the architecture where it is not all.
func statuses(status []byte) map[string]string {
	out := map[string]string{}
	var name, arch, state, version string
	add := func() {
		if name != "" && state != "" {
			if arch != "" && arch != "all" {
				name += ":" + arch
			}
			out[name] = state + " " + version
		}
		name, arch, state, version = "", "", "", ""
	}
	for line := range strings.Lines(string(status)) {
		line = strings.TrimRight(line, "\r\n")
		key, val, ok := strings.Cut(line, ": ")
		switch {
		case line == "":
			add()
		case !ok:
		case key == "Package":
			name = val
		case key == "Architecture":
			arch = val
		case key == "Version":
			version = val
		case key == "Status":
			if f := strings.Fields(val); len(f) == 3 {
				state = f[2]
			}
		}
	}
	add()
	return out
}

// Recorded is what the sandbox noted.
type Recorded struct {
	Actions   []string // of units, as policy-rc.d was asked: "nginx restart"
	HostSteps []string // command lines for the host, after the commit
	Warnings  []string
	Conffiles []change.Conffile
	Reboot    []string // packages that ask for a reboot
	Changed   Changes  // which package changed what of /var
}

// Read reads what was kept, by path.
func Read(kept map[string]string) Recorded {
	r := Recorded{
		Actions: lines(kept[recordPolicy]), HostSteps: lines(kept[recordHost]), Warnings: lines(kept[recordWarn]),
		Conffiles: conffiles(kept[recordConf]), Changed: readChanges(kept[recordBegan], kept[recordTouch]),
	}
	if _, ok := kept[rebootFile]; ok {
		r.Reboot = lines(kept[rebootPkgs])
		if len(r.Reboot) == 0 {
			r.Reboot = []string{"a package"}
		}
	}
	return r
}

// lines are the distinct lines of a text, in order.
func lines(text string) []string {
	var out []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && !slices.Contains(out, line) {
			out = append(out, line)
		}
	}
	return out
}

// conffiles reads "kept PATH" and "replaced PATH" with the difference, indented.
func conffiles(text string) []change.Conffile {
	var out []change.Conffile
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if rest, ok := strings.CutPrefix(line, " "); ok {
			if len(out) > 0 {
				out[len(out)-1].Diff += rest + "\n"
			}
			continue
		}
		verb, path, ok := strings.Cut(line, " ")
		if ok {
			out = append(out, change.Conffile{Path: path, Kept: verb == "kept"})
		}
	}
	return out
}
