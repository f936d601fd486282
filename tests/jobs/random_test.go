package jobs

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/change/directive"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/rootfs"
	"github.com/liveupd/liveupd/tests/machine"
)

// setting is one that random units set, the property that shows its value, and
// values for it; "" is the reset.
type setting struct {
	section, key, property string
	values                 []string
}

var settings = []setting{
	{"Unit", "Description", "Description", []string{"one", "two  words", "", "with \\\\ a backslash", "%n of %p, %%"}},
	{"Unit", "Documentation", "Documentation", []string{"man:a(1)", "man:b(1) man:c(1)", ""}},
	{"Service", "Environment", "Environment", []string{"A=1", "B=2 C=3", `"D=four words" A=2`, "", `'E=%i'`, "A=\\x41"}},
	{"Service", "Nice", "Nice", []string{"5", "+6", "-7", ""}},
	{"Service", "UMask", "UMask", []string{"077", "0027", ""}},
	{"Service", "User", "User", []string{"daemon", "nobody", ""}},
	{"Service", "WorkingDirectory", "WorkingDirectory", []string{"/srv", "/srv//x/", "", "-/tmp", "~"}},
	{"Service", "PrivateTmp", "PrivateTmp", []string{"yes", "0", "on", "false", ""}},
	{"Service", "NoNewPrivileges", "NoNewPrivileges", []string{"yes", "n", "t", ""}},
	{"Service", "ProtectSystem", "ProtectSystem", []string{"strict", "true", "full", "no", ""}},
	{"Service", "TimeoutStopSec", "TimeoutStopUSec", []string{"90", "1min 31s", "2m30s", "1.5h", "500ms", ""}},
	{"Service", "RestartSec", "RestartUSec", []string{"7", "1min 5s", "300ms", ""}},
	{"Service", "MemoryMax", "MemoryMax", []string{"1G", "1.5G", "infinity", "1048576", ""}},
	{"Service", "TasksMax", "TasksMax", []string{"77", "1000", "infinity", ""}},
	{"Service", "CPUWeight", "CPUWeight", []string{"50", "200", ""}},
	{"Service", "LimitNOFILE", "LimitNOFILE", []string{"1024", "4096:4096", "100:2000", ""}},
	{"Service", "OOMScoreAdjust", "OOMScoreAdjust", []string{"5", "-10", ""}},
	{"Service", "KillSignal", "KillSignal", []string{"SIGINT", "HUP", "3", ""}},
	{"Service", "Restart", "Restart", []string{"always", "on-failure", "no", ""}},
	{"Service", "SyslogIdentifier", "SyslogIdentifier", []string{"me", "%p-x", ""}},
	{"Service", "ReadWritePaths", "ReadWritePaths", []string{"/a", "/b /c", "-/d", "", "/a//e/"}},
	{"Service", "ReadWriteDirectories", "ReadWritePaths", []string{"/old", ""}},
	{"Service", "SupplementaryGroups", "SupplementaryGroups", []string{"adm", "tty disk", ""}},
	{"Service", "PassEnvironment", "PassEnvironment", []string{"X", "Y Z", ""}},
	{"Service", "UnsetEnvironment", "UnsetEnvironment", []string{"U", "V W", ""}},
	{"Service", "RemainAfterExit", "RemainAfterExit", []string{"yes", "no", "1", ""}},
	{"Service", "StandardOutput", "StandardOutput", []string{"null", "journal", ""}},
	{"Service", "KeyringMode", "KeyringMode", []string{"shared", "inherit", ""}},
}

// randomUnits lays n services with drop-ins on all levels, and gives their names.
func randomUnits(root string, r *rand.Rand, n int) ([]string, error) {
	levels := []string{"etc/systemd/system", "usr/local/lib/systemd/system", "usr/lib/systemd/system"}
	write := func(file, text string) error {
		file = filepath.Join(root, file)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if r.IntN(25) == 0 && strings.HasSuffix(file, ".conf") {
			_ = os.Remove(file)
			return os.Symlink("/dev/null", file)
		}
		_ = os.Remove(file)
		return os.WriteFile(file, []byte(text), 0o644)
	}
	names := []string{"zz.service"}
	if err := write(levels[2]+"/zz.service", "[Service]\nExecStart=/bin/true\n"); err != nil {
		return nil, err
	}
	for i := range n {
		stem := fmt.Sprintf("z%d", i)
		name := stem + "-a-b.service"
		file, dirs := name, []string{name, stem + "-.service", stem + "-a-.service"}
		if i%3 == 0 {
			name, file = stem+"-t@in-st.service", stem+"-t@.service"
			dirs = []string{name, file, stem + "-@.service", stem + "-@in-st.service", stem + "-.service"}
		}
		if i%5 == 0 {
			alias := stem + "-alias.service"
			if i%3 == 0 {
				alias = stem + "-alias@.service"
			}
			at := filepath.Join(root, levels[0], alias)
			_ = os.MkdirAll(filepath.Dir(at), 0o755)
			_ = os.Remove(at)
			if err := os.Symlink("/"+levels[2]+"/"+file, at); err != nil {
				return nil, err
			}
			dirs = append(dirs, alias)
		}
		if err := write(levels[2]+"/"+file, "[Service]\nExecStart=/bin/true\n"+randomText(r)); err != nil {
			return nil, err
		}
		if r.IntN(4) == 0 && i%5 != 0 {
			if err := write(levels[r.IntN(2)]+"/"+file, "[Service]\nExecStart=/bin/true\n"+randomText(r)); err != nil {
				return nil, err
			}
		}
		for range r.IntN(6) {
			at := fmt.Sprintf("%s/%s.d/%d.conf", levels[r.IntN(3)], dirs[r.IntN(len(dirs))], r.IntN(5))
			if err := write(at, randomText(r)); err != nil {
				return nil, err
			}
		}
		names = append(names, name)
	}
	return names, nil
}

func randomText(r *rand.Rand) string {
	var b strings.Builder
	for range r.IntN(7) {
		s := settings[r.IntN(len(settings))]
		v := s.values[r.IntN(len(s.values))]
		switch r.IntN(8) {
		case 0:
			b.WriteString("; a comment\n")
		case 1:
			v = strings.Replace(v, " ", " \\\n# inside\n  ", 1)
		case 2:
			v += "  \t"
		case 3:
			b.WriteString("no assignment\n")
		}
		fmt.Fprintf(&b, "[%s]\n %s = %s\n", s.section, s.key, v)
	}
	return b.String()
}

// effectiveAgainst compares what we read of the units with what the manager holds.
func effectiveAgainst(t *testing.T, m *machine.Machine, names []string) {
	t.Helper()
	dir, err := sys.OpenRoot(m.Image())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	tree, err := rootfs.Load(t.Context(), rootfs.Dir(dir), rootfs.LoadOptions{Instances: names})
	if err != nil {
		t.Fatal(err)
	}
	properties := []string{"Id", "FragmentPath", "DropInPaths", "LimitNOFILESoft"}
	for _, s := range settings {
		properties = append(properties, s.property)
	}
	shown := map[string]map[string]string{}
	for part := range slices.Chunk(names, 200) {
		out := m.Shell("systemctl show --property=" + strings.Join(properties, ",") + " -- " + strings.Join(part, " "))
		for i, block := range strings.Split(out, "\n\n") {
			shown[part[i]] = map[string]string{}
			for line := range strings.Lines(block) {
				k, v, _ := strings.Cut(strings.TrimRight(line, "\n"), "=")
				shown[part[i]][k] = v
			}
		}
	}
	wrong, values := 0, 0
	bad := func(format string, args ...any) {
		if wrong++; wrong < 40 {
			t.Errorf(format, args...)
		}
	}
	for _, name := range names[1:] {
		u, is := tree.Units[name], shown[name]
		if u == nil {
			bad("%s is not read", name)
			continue
		}
		// 252 of Debian names the merged folder without /usr.
		for _, k := range []string{"FragmentPath", "DropInPaths"} {
			is[k] = strings.ReplaceAll(" "+is[k], " /lib/", " /usr/lib/")[1:]
		}
		if is["FragmentPath"] != u.Fragment {
			bad("%s: fragment %s; the manager says %s", name, u.Fragment, is["FragmentPath"])
		}
		if got := strings.Join(u.DropIns, " "); got != is["DropInPaths"] {
			bad("%s: drop-ins %s; the manager says %s", name, got, is["DropInPaths"])
		}
		for _, s := range settings {
			if s.key == "ReadWriteDirectories" {
				continue // shown as ReadWritePaths
			}
			values++
			want := is[s.property]
			if s.key == "LimitNOFILE" {
				want = is["LimitNOFILESoft"] + ":" + want
			}
			got, set := ourValue(u, s)
			if !set {
				want0 := shown[names[0]][s.property]
				if s.key == "LimitNOFILE" {
					want0 = shown[names[0]]["LimitNOFILESoft"] + ":" + want0
				}
				if s.key == "Description" {
					want0 = name
				}
				got = want0
			} else {
				want = shownValue(s, want)
			}
			if got != want {
				bad("%s: %s= is %q; the manager says %q", name, s.key, got, want)
			}
		}
	}
	t.Logf("%d values of %d units compared, %d differ", values, len(names)-1, wrong)
}

func ourValue(u *change.Unit, s setting) (string, bool) {
	var list []string
	for _, o := range u.Settings {
		if section, key := directive.Modern(o.Section, o.Key); section == s.section && key == s.key {
			list = append(list, specifiers(o.Value, u.Name))
		}
	}
	if len(list) == 0 {
		return "", false
	}
	return strings.Join(directive.Normal(directive.KindOf(s.section, s.key), list), "|"), true
}

func specifiers(v, name string) string {
	stem := strings.TrimSuffix(name, path.Ext(name))
	prefix, instance, _ := strings.Cut(stem, "@")
	return strings.NewReplacer("%%", "%", "%n", name, "%p", prefix, "%i", instance).Replace(v)
}

// shownValue brings a property's value into the form of ours.
func shownValue(s setting, v string) string {
	kind := directive.KindOf(s.section, s.key)
	switch s.key {
	case "WorkingDirectory":
		v = strings.Replace(v, "!", "-", 1)
	case "MemoryMax", "TasksMax":
		if v == strconv.FormatUint(1<<64-1, 10) {
			v = "infinity"
		}
	}
	if kind.Scalar() {
		return strings.Join(directive.Normal(kind, []string{v}), "|")
	}
	if v == "" {
		return ""
	}
	return strings.Join(directive.Normal(kind, []string{v}), "|")
}
