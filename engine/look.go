package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/planner"
	"github.com/liveupd/liveupd/transact"
)

// openLook opens a session to look at the running system alone. Who may not
// open its file systems, as an ordinary user may not, gets one that sees what
// everybody can read, and the words that say what is missing.
func openLook(e *Engine, req Request) (*session, []string, error) {
	s, err := openSession(e, req, readOnly)
	if err == nil || !errors.Is(err, fs.ErrPermission) {
		return s, nil, err
	}
	var gaps []string
	s = &session{e: e, k: e.Kernel, req: req, mode: readOnly}
	if s.rules, err = loadRules(req); err != nil {
		if !errors.Is(err, fs.ErrPermission) {
			return nil, nil, err
		}
		gaps = append(gaps, fmt.Sprintf("the policy is not known: %v", err))
	}
	root, err := sys.OpenRoot(req.Root)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot open root %s: %w", req.Root, err)
	}
	s.vols = []transact.Volume{{Mount: "/", Dir: root}}
	s.opened = root
	if _, err := sys.Lstat(root, transact.Dir); !errors.Is(err, fs.ErrNotExist) {
		gaps = append(gaps, "what earlier updates keep and put off is not known: only root may read it")
	}
	return s, gaps, nil
}

// unreadable tells in words which of the files that say when a service has to
// be started anew could not be looked at.
func unreadable(n *planner.Newer) []string {
	if n == nil || len(n.Denied) == 0 {
		return nil
	}
	list := slices.Compact(slices.Sorted(slices.Values(n.Denied)))
	return []string{fmt.Sprintf("whether it changed since the services that read it began is not known of %s (not permitted)", some(list))}
}
