package house

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/liveupd/liveupd"

// floors are the floors of the house. A folder that is not here has no place
// yet: give it one. A name that ends with / means the folders below it.
var floors = map[string]int{
	"change":           1,
	"internal/sys":     2,
	"internal/journal": 2,
	"internal/catalog": 2,
	"internal/systemd": 2,
	"internal/config":  2,
	"internal/elfcode": 2,
	"internal/laid":    2,
	"internal/trust":   2,
	"source/":          3,
	"labels":           3,
	"nsmount":          3,
	"transact":         3,
	"writable":         3,
	"diff":             3,
	"rootfs":           3,
	"rootkind":         3,
	"inspect":          3,
	"planner":          3,
	"recovery":         3,
	"neighbours":       3,
	"restart":          3,
	"quiesce":          3,
	"guard":            3,
	"health":           3,
	"sandbox":          3,
	"engine":           4,
	"internal/ui":      5,
	"unattended":       5,
	"cmd/":             6,
	"tests":            7,
	"tests/":           7,
	"packaging/":       7,
}

// floorOf gives the floor of a package and the unit that it belongs to: a
// package's own sub-packages (internal/systemd/systemdtest) are part of it.
func floorOf(pkg string) (floor int, unit string) {
	for dir := pkg; dir != "."; dir = path.Dir(dir) {
		if f, ok := floors[dir]; ok {
			return f, dir
		}
		if f, ok := floors[path.Dir(dir)+"/"]; ok {
			return f, dir
		}
	}
	return 0, ""
}

// wall is one rule about what a package may import by itself.
type wall struct {
	name string
	why  string
	// allows tells whether from may import to; both are relative to the
	// module where they are its own.
	allows func(from, to string) bool
	// tests: the rule holds for a package's tests, too.
	tests bool
}

var walls = []wall{
	{
		"down", "imports point down only, so that a floor can be understood, tested and replaced without the ones above it",
		func(from, to string) bool {
			f, _ := floorOf(from)
			t, _ := floorOf(to)
			return t <= f
		}, true,
	},
	{
		"sideways", "packages on one floor exchange values of change; only engine sees two organs at once",
		func(from, to string) bool {
			f, unit := floorOf(from)
			t, other := floorOf(to)
			// internal/sys is the ground that its floor stands on: each call
			// that changes something goes through it.
			return f != t || t == 0 || unit == other || other == "internal/sys" || f == 7
		}, false,
	},
	{
		"system calls", "one package speaks to the kernel, so that each call that changes something can be counted and made to fail",
		func(from, to string) bool {
			return !strings.HasPrefix(to, "golang.org/x/sys") || from == "internal/sys" || strings.HasPrefix(from, "tests/")
		}, true,
	},
	{
		"network", "one package speaks to servers, so that what came from one is bounded, and checked, in one place",
		func(from, to string) bool {
			return to != "net/http" || from == "source/fetch" || strings.HasPrefix(from, "tests/")
		}, false,
	},
	{
		"netlink", "one package asks the kernel what the machine is reached by, so that what counts of it is decided in one place",
		func(from, to string) bool {
			return !strings.HasPrefix(to, "github.com/vishvananda/netlink") || from == "guard"
		}, true,
	},
	{
		"planner", "the planner is pure: the same input gives the same plan, and apply does what --plan has shown",
		func(from, to string) bool {
			if from != "planner" {
				return true
			}
			top, _, _ := strings.Cut(to, "/")
			return to != "math/rand" && to != "math/rand/v2" && to != "path/filepath" && !strings.HasPrefix(to, "internal/") &&
				!slices.Contains([]string{"os", "io", "net", "syscall", "time", "log", "bufio", "embed", "unsafe"}, top)
		}, false,
	},
	{
		"change", "the words that everything speaks are data only: no I/O, no clock",
		func(from, to string) bool {
			top, _, _ := strings.Cut(to, "/")
			return from != "change" || !slices.Contains([]string{"os", "io", "net", "syscall", "time", "log", "bufio", "unsafe"}, top)
		}, false,
	},
	{
		"writable", "who owns a path is a function of values: no file can change the answer",
		func(from, to string) bool {
			top, _, _ := strings.Cut(to, "/")
			return from != "writable" || !slices.Contains([]string{"os", "io", "net", "syscall", "time", "log"}, top)
		}, false,
	},
	{
		"renderers", "renderers print values; what made them is not their business",
		func(from, to string) bool {
			f, _ := floorOf(to)
			return from != "internal/ui" || f < 3
		}, false,
	},
	{
		"command line", "the engine serves the daemon as it serves the command line",
		func(from, to string) bool {
			return to != "github.com/spf13/cobra" || from == "cmd/liveupd"
		}, true,
	},
	{
		"recover", "liveupd-recover lies in each initrd and runs on a half-updated system: what it does not need must not be there to fail",
		func(from, to string) bool {
			f, _ := floorOf(to)
			return from != "cmd/liveupd-recover" || f < 4 && !strings.Contains(to, "dbus") && to != "internal/systemd"
		}, false,
	},
	{
		"cgo", "liveupd and liveupd-recover survive a bad libc: they are static",
		func(_, to string) bool { return to != "C" }, true,
	},
}

// goPackage is what go list -json says of a package.
type goPackage struct {
	ImportPath   string
	Imports      []string
	TestImports  []string
	XTestImports []string
	CgoFiles     []string
	Deps         []string
	Standard     bool
}

func list(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-e", "-json=ImportPath,Imports,TestImports,XTestImports,CgoFiles,Deps", module+"/...")
	out, err := cmd.Output()
	if err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatalf("go list: %v", err)
	}
	var pkgs []goPackage
	dec := json.NewDecoder(bytes.NewReader(out))
	for {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

func local(p string) string { return strings.TrimPrefix(strings.TrimPrefix(p, module), "/") }

func TestWalls(t *testing.T) {
	pkgs := list(t)
	if len(pkgs) < 10 {
		t.Fatalf("go list found %d packages only", len(pkgs))
	}
	for _, p := range pkgs {
		from := local(p.ImportPath)
		if f, _ := floorOf(from); f == 0 {
			t.Errorf("%s stands on no floor: give it one in floors", from)
		}
		for _, w := range walls {
			imports := p.Imports
			if w.tests {
				imports = slices.Concat(p.Imports, p.TestImports, p.XTestImports)
			}
			for _, to := range imports {
				if !w.allows(from, local(to)) {
					t.Errorf("%s imports %s: %s", from, to, w.why)
				}
			}
		}
	}
}

// TestWallsRefuse is the walls' negative control: each refuses what it is there for.
func TestWallsRefuse(t *testing.T) {
	tests := []struct{ wall, from, to string }{
		{"down", "change", "internal/sys"},
		{"down", "internal/journal", "transact"},
		{"down", "planner", "engine"},
		{"down", "engine", "internal/ui"},
		{"down", "internal/ui", "cmd/liveupd"},
		{"sideways", "diff", "writable"},
		{"sideways", "source/tree", "source/tarball"},
		{"sideways", "source/tree", "diff"},
		{"sideways", "internal/journal", "internal/catalog"},
		{"sideways", "cmd/liveupd", "cmd/liveupd-recover"},
		{"system calls", "nsmount", "golang.org/x/sys/unix"},
		{"planner", "planner", "os"},
		{"planner", "planner", "os/exec"},
		{"planner", "planner", "io/fs"},
		{"planner", "planner", "time"},
		{"planner", "planner", "internal/sys"},
		{"change", "change", "os"},
		{"writable", "writable", "os"},
		{"renderers", "internal/ui", "planner"},
		{"command line", "engine", "github.com/spf13/cobra"},
		{"recover", "cmd/liveupd-recover", "engine"},
		{"network", "engine", "net/http"},
		{"netlink", "health", "github.com/vishvananda/netlink/nl"},
		{"cgo", "inspect", "C"},
	}
	seen := map[string]bool{}
	for _, tt := range tests {
		i := slices.IndexFunc(walls, func(w wall) bool { return w.name == tt.wall })
		if i < 0 {
			t.Fatalf("no wall is called %s", tt.wall)
		}
		seen[tt.wall] = true
		if walls[i].allows(tt.from, tt.to) {
			t.Errorf("the wall %q lets %s import %s", tt.wall, tt.from, tt.to)
		}
	}
	for _, w := range walls {
		if !seen[w.name] {
			t.Errorf("no case shows that the wall %q refuses anything", w.name)
		}
		if w.why == "" {
			t.Errorf("the wall %q has no reason", w.name)
		}
	}
}

// What the programs pull in by way of others counts, too.
func TestDeps(t *testing.T) {
	never := map[string]map[string]string{
		"cmd/liveupd-recover": {
			"net/http":               "an initrd has no use for it",
			"github.com/spf13/cobra": "an initrd has no use for it",
			module + "/engine":       "what recovery does not need must not be there to fail",
		},
		"cmd/liveupd": {
			"github.com/opencontainers/runc/libcontainer": "a container runtime is more than a program that must survive every update should hold",
		},
		"planner": {
			module + "/internal/sys": "the planner is pure",
			"net":                    "the planner is pure",
		},
	}
	for _, p := range list(t) {
		for dep, why := range never[local(p.ImportPath)] {
			if slices.Contains(p.Deps, dep) {
				t.Errorf("%s depends on %s: %s", p.ImportPath, dep, why)
			}
		}
		if len(p.CgoFiles) > 0 {
			t.Errorf("%s uses cgo in %v: liveupd is static", p.ImportPath, p.CgoFiles)
		}
	}
}
