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

// status is what a status file says of one package (deb-control(5), dpkg(1) "Package states").
type status struct {
	change.Package
	state string // the last word of Status
}

// statuses reads a status file, by name and architecture; packages that are only left with their
// configuration are not among them.
func statuses(file []byte) map[string]status {
	out := map[string]status{}
	var p status
	add := func() {
		if p.Name != "" && p.state != "" && p.state != "config-files" && p.state != "not-installed" {
			out[p.Name+":"+p.Arch] = p
		}
		p = status{}
	}
	for full := range bytes.Lines(file) {
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
			p.state = ""
			if f := strings.Fields(val); len(f) == 3 {
				p.state = f[2]
			}
		}
	}
	add()
	return out
}

// Installed reads a status file: versions by name and architecture, of packages that
// are not only left with their configuration.
func Installed(file []byte) map[string]change.Package {
	out := map[string]change.Package{}
	for key, p := range statuses(file) {
		out[key] = p.Package
	}
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
// triggers that wait, and the other as installed, in the same version; sorted by name, with the
// architecture where it is not all.
func Finished(before, after []byte) []string {
	old, now := statuses(before), statuses(after)
	var out []string
	for key, was := range old {
		if is := now[key]; was.state != is.state && is.state == "installed" && was.To == is.To {
			out = append(out, strings.TrimSuffix(strings.TrimSuffix(key, ":all"), ":"))
		}
	}
	slices.Sort(out)
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
