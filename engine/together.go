package engine

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/config"
	"github.com/liveupd/liveupd/internal/laid"
	"github.com/liveupd/liveupd/internal/systemd"
	"github.com/liveupd/liveupd/neighbours"
)

// SetupRequest is what setup is to do beside the recovery at boot.
type SetupRequest struct {
	// Together: lay what makes liveupd and what else updates the root fit together; with
	// Remove, take just that away.
	Together bool `json:"together,omitempty"`
	// Settle: bring what was laid so in line with the configuration, and do nothing else.
	Settle bool `json:"settle,omitempty"`
	// NoInitrds: leave the initrds to who calls.
	NoInitrds bool `json:"no_initrds,omitempty"`
}

// together is what was found beside liveupd in a root, and what is done about it.
type together struct {
	r      *os.Root
	beside *neighbours.Beside
	set    *laid.Set
	acts   bool // the request is for this, too
}

func openTogether(req Request) (_ *together, err error) {
	t := &together{acts: req.Setup.Together || req.Setup.Settle || req.Remove}
	if t.r, err = os.OpenRoot(req.Root); err != nil {
		return nil, fmt.Errorf("cannot open root %s: %w", req.Root, err)
	}
	defer func() {
		if err != nil {
			t.r.Close()
		}
	}()
	cfg, err := config.Load(req.Root)
	if err != nil && !req.Remove {
		return nil, err // what was laid is taken away whatever the configuration says
	}
	o := neighbours.Options{Unattended: err == nil && cfg.Unattended.Enabled, Program: "/usr/bin/liveupd"}
	if _, err := t.r.Stat("usr/bin/liveupd"); err != nil {
		o.Program = "/usr/local/lib/liveupd/liveupd"
	}
	if t.beside, err = neighbours.Inspect(t.r, o); err != nil {
		return nil, err
	}
	if t.set, err = laid.Open(t.r, neighbours.RecordFile, t.beside.Files); err != nil {
		return nil, err
	}
	if req.Setup.Settle {
		files := []laid.File{}
		if t.set.Recorded() {
			files = t.beside.Settled(t.set.Laid)
		}
		t.set, err = laid.Open(t.r, neighbours.RecordFile, files)
	}
	return t, err
}

// found are the neighbours, with what of it is so already.
func (t *together) found() []change.Neighbour {
	for i := range t.beside.Found {
		n := &t.beside.Found[i]
		n.Laid = n.Change != ""
		for _, f := range t.beside.Files {
			if t.beside.Owner(f.Path) == n.Name && !t.set.Laid(f.Path) {
				n.Laid = false
			}
		}
	}
	return t.beside.Found
}

// plan tells what is to be done, each item with what it changes.
func (t *together) plan(req Request) ([]change.SetupItem, error) {
	if !t.acts {
		return nil, nil
	}
	var items []change.SetupItem
	var err error
	if req.Remove {
		items, err = t.set.PlanRemove()
	} else {
		items, err = t.set.Plan()
	}
	if err != nil {
		return nil, err
	}
	for i := range items {
		it := &items[i]
		if it.For = t.beside.Owner(it.Path); it.For == "" {
			it.For = "liveupd" // whom it was laid for is gone
		}
		if it.Action != "keep" {
			before, err := t.r.ReadFile(strings.TrimPrefix(it.Path, "/"))
			if err != nil && it.Action != "install" {
				return nil, fmt.Errorf("cannot read %s: %w", it.Path, err)
			}
			after := ""
			if it.Action != "remove" {
				after = t.beside.Text(it.Path)
			}
			it.Diff = wholeDiff(it.Path, string(before), after)
		}
	}
	return items, nil
}

// do carries out what plan has told, and has systemd read its drop-ins anew.
func (t *together) do(ctx context.Context, req Request, items []change.SetupItem) (warning string, err error) {
	if !t.acts {
		return "", nil
	}
	if req.Remove {
		err = t.set.Remove()
	} else {
		err = t.set.Install()
	}
	if err != nil {
		return "", err
	}
	if !req.Live() || !slices.ContainsFunc(items, func(it change.SetupItem) bool {
		return it.Action != "keep" && strings.HasPrefix(it.Path, "/etc/systemd/")
	}) {
		return "", nil
	}
	if _, err := os.Stat("/run/systemd/private"); err != nil {
		return "", nil // nothing runs that has read them
	}
	conn, err := systemd.Connect(ctx)
	if err == nil {
		defer conn.Close()
		err = conn.Reload(ctx)
	}
	if err != nil {
		return fmt.Sprintf("systemd has not read its configuration anew: %v", err), nil
	}
	return "", nil
}

func (t *together) close() { t.r.Close() }

// wholeDiff is a unified diff of a small file of which all lines change.
func wholeDiff(name, before, after string) string {
	var b strings.Builder
	side := func(sign, text string) (label, at string) {
		n := strings.Count(text, "\n")
		if text == "" {
			return "/dev/null", sign + "0,0"
		}
		return name, fmt.Sprintf("%s1,%d", sign, n)
	}
	oldName, oldAt := side("-", before)
	newName, newAt := side("+", after)
	fmt.Fprintf(&b, "--- %s\n+++ %s\n@@ %s %s @@\n", oldName, newName, oldAt, newAt)
	for line := range strings.Lines(before) {
		b.WriteString("-" + strings.TrimSuffix(line, "\n") + "\n")
	}
	for line := range strings.Lines(after) {
		b.WriteString("+" + strings.TrimSuffix(line, "\n") + "\n")
	}
	return b.String()
}
