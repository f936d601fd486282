package recovery

import (
	"fmt"
	"os"
	"slices"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/laid"
)

// recordFile lists what Install has laid down, so that Remove takes away that and no more.
const recordFile = "var/lib/liveupd/setup.json"

// Setup lays the files of the recovery at boot into a root, or takes them away.
type Setup struct {
	r     *os.Root
	state *State
	items []item
	set   *laid.Set
}

// OpenSetup prepares the installation that fits a root.
func OpenSetup(root string, s *State, p Programs) (*Setup, error) {
	r, err := os.OpenRoot(root)
	if err != nil {
		return nil, fmt.Errorf("cannot open root %s: %w", root, err)
	}
	u := &Setup{r: r, state: s, items: s.items(r, p)}
	files := make([]laid.File, 0, len(u.items))
	for _, it := range u.items {
		files = append(files, it.File)
	}
	if u.set, err = laid.Open(r, recordFile, files); err != nil {
		r.Close()
		return nil, err
	}
	return u, nil
}

// Close lets go of the root.
func (u *Setup) Close() error { return u.r.Close() }

// Plan tells what Install would do, and whether the initrds have to be made anew for it.
func (u *Setup) Plan() (items []change.SetupItem, initrds bool, err error) {
	if items, err = u.set.Plan(); err != nil {
		return nil, false, err
	}
	for i, it := range items {
		// What is wanted no more may be in the initrds, too.
		initrds = initrds || it.Action != "keep" && (i >= len(u.items) || u.items[i].initrd)
	}
	if !u.state.Container {
		initrds = initrds || slices.ContainsFunc(u.state.Kernels, func(k change.BootKernel) bool { return k.Recovers != "yes" && k.Initrd != "" })
	}
	return items, initrds, nil
}

// Install lays down what Plan has told.
func (u *Setup) Install() error { return u.set.Install() }

// PlanRemove tells what Remove would take away, and whether the initrds have to be made
// anew for it.
func (u *Setup) PlanRemove() (items []change.SetupItem, initrds bool, err error) {
	if items, err = u.set.PlanRemove(); err != nil {
		return nil, false, err
	}
	initrds = slices.ContainsFunc(u.state.Kernels, func(k change.BootKernel) bool { return k.Recovers != "no" && k.Initrd != "" })
	return items, initrds && u.set.Recorded(), nil
}

// Remove takes away what Install has laid down.
func (u *Setup) Remove() error { return u.set.Remove() }

// Rebuild is the command that makes the initrds anew; none where no tool is known.
func (s *State) Rebuild() []string {
	switch s.Tool {
	case Initramfs:
		return []string{"update-initramfs", "-u", "-k", "all"}
	case Dracut:
		return []string{"dracut", "--regenerate-all", "--force"}
	}
	return nil
}
