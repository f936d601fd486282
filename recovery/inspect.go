package recovery

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// State is what recovers a cut-off commit of a root when it boots.
type State struct {
	Live      bool
	Container bool // the host boots the kernel: there is nothing before the unit
	Systemd   bool // the root has systemd
	Tool      string
	Kernels   []change.BootKernel
	Unit      string // enabled, disabled, missing
	Init      bool   // init= names liveupd-init on the running kernel's command line
	InitPath  string // where this root has it, or Install will put it
}

// The tools that make initrds.
const (
	Initramfs = "initramfs-tools"
	Dracut    = "dracut"
	NoTool    = "none"
)

// Options say what Inspect looks at.
type Options struct {
	// Live: the root is that of the running system.
	Live bool
	// Cache is a file for the verdicts on initrds; "" reads each anew.
	Cache string
	// Cmdline is the running kernel's command line, Container tells whether the
	// running system is one. Both are for a live root.
	Cmdline   string
	Container bool
}

// Inspect reads what a root has. It writes nothing but the cache.
func Inspect(root string, o Options) (*State, error) {
	r, err := os.OpenRoot(root)
	if err != nil {
		return nil, fmt.Errorf("cannot look for the recovery at boot: %w", err)
	}
	defer r.Close()
	s := &State{Live: o.Live, Container: o.Live && o.Container, Tool: tool(r), Unit: unitState(r)}
	s.Systemd = exists(r, "usr/lib/systemd/systemd") || exists(r, "lib/systemd/systemd")
	s.Init = o.Live && initNames(o.Cmdline)
	s.InitPath = "/" + localLib + "/" + InitProgram
	if packaged := LibDir + "/" + InitProgram; exists(r, packaged) {
		s.InitPath = "/" + packaged
	}
	if s.Container {
		return s, nil
	}
	list, err := kernels(r)
	if err != nil {
		return nil, err
	}
	cache := loadVerdicts(o.Cache)
	for _, b := range list {
		s.Kernels = append(s.Kernels, judge(r, b, cache))
	}
	cache.save()
	return s, nil
}

func exists(r *os.Root, name string) bool {
	_, err := r.Lstat(name)
	return err == nil
}

// tool names what makes this root's initrds. Where both are installed, that is
// initramfs-tools: Debian's dracut package removes the other.
func tool(r *os.Root) string {
	switch {
	case exists(r, "usr/share/initramfs-tools/init"):
		return Initramfs
	case exists(r, "usr/lib/dracut/dracut-functions.sh"):
		return Dracut
	}
	return NoTool
}

// initNames tells whether the kernel was told to run the shim.
func initNames(cmdline string) bool {
	program := ""
	for f := range strings.FieldsSeq(cmdline) {
		if v, ok := strings.CutPrefix(f, "init="); ok {
			program = v
		}
	}
	return path.Base(program) == InitProgram
}

// unitDirs are where systemd finds units, those that win first.
var unitDirs = []string{"etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"}

func unitState(r *os.Root) string {
	state := "missing"
	for _, dir := range unitDirs {
		b, err := r.ReadFile(path.Join(dir, RecoverUnit))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil || len(bytes.TrimSpace(b)) == 0 { // a link to /dev/null leads out of the root
			return "disabled"
		}
		state = "disabled"
		break
	}
	if state == "missing" {
		return state
	}
	for _, dir := range unitDirs {
		if exists(r, path.Join(dir, "sysinit.target.wants", RecoverUnit)) {
			return "enabled"
		}
	}
	return state
}

// Lacks lists what no recovery covers, each as a clause; none: all is well. A tree
// that no machine runs needs what is needed when it boots.
func (s *State) Lacks() []string {
	var out []string
	if s.Unit != "enabled" && (s.Systemd || s.Container) {
		out = append(out, fmt.Sprintf("%s is %s", RecoverUnit, s.Unit))
	}
	if s.Container || s.Init {
		return out
	}
	if len(s.Kernels) == 0 && s.Live {
		return append(out, "no kernel in /boot tells how this machine boots, and init= does not name "+InitProgram)
	}
	for _, k := range s.Kernels {
		switch k.Recovers {
		case "no":
			out = append(out, fmt.Sprintf("%s does not recover", k.Initrd))
		case "old":
			out = append(out, fmt.Sprintf("%s does not recover: %s", k.Initrd, k.Detail))
		case "none":
			out = append(out, fmt.Sprintf("%s has no initrd, and init= does not name %s", k.Kernel, InitProgram))
		case "unknown":
			out = append(out, fmt.Sprintf("%s cannot be read: %s", k.Initrd, k.Detail))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
