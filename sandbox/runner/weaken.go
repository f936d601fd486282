package runner

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/opencontainers/runc/libcontainer/configs"

	"github.com/liveupd/liveupd/sandbox"
)

// weaken takes away the protections that the spec names (sandbox.Spec.Without), and
// says so.
func weaken(c *configs.Config, s sandbox.Spec) (notes []string) {
	for _, p := range s.Without {
		notes = append(notes, "the command runs without the protection "+string(p))
	}
	without := func(p sandbox.Protection) bool { return slices.Contains(s.Without, p) }
	for p, ns := range map[sandbox.Protection]configs.NamespaceType{
		sandbox.PrivatePIDs: configs.NEWPID, sandbox.PrivateIPC: configs.NEWIPC, sandbox.PrivateNames: configs.NEWUTS, sandbox.PrivateNet: configs.NEWNET,
	} {
		if without(p) {
			c.Namespaces.Remove(ns)
		}
	}
	if without(sandbox.PrivateNet) {
		c.Networks = nil
	}
	if without(sandbox.Capabilities) {
		all := own()
		c.Capabilities = &configs.Capabilities{Bounding: all, Effective: all, Permitted: all}
	}
	if without(sandbox.Masks) {
		c.MaskPaths, c.ReadonlyPaths = nil, nil
		writable(c, "/sys")
	}
	if without(sandbox.Devices) {
		writable(c, "/dev")
	}
	var view struct{ Path string }
	if json.Unmarshal(s.View, &view) != nil {
		return notes
	}
	if without(sandbox.HiddenRun) {
		c.Mounts = append(c.Mounts, &configs.Mount{Source: filepath.Join(view.Path, "run"), Device: "bind", Destination: "/run", Flags: syscall.MS_BIND | syscall.MS_REC})
	}
	if without(sandbox.Layers) {
		c.Rootfs = strings.TrimSuffix(view.Path, "/")
	}
	return notes
}

func writable(c *configs.Config, at string) {
	for _, m := range c.Mounts {
		if m.Destination == at {
			m.Flags &^= syscall.MS_RDONLY
		}
	}
}
