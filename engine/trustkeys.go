package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/internal/trust"
)

// KeysRequest is what the verb key is to do.
type KeysRequest struct {
	Do     string `json:"do"`               // add, list, remove, revoke
	Which  string `json:"which,omitempty"`  // remove, revoke: an ID or a name
	Name   string `json:"name,omitempty"`   // add: what to call it; "" is its ID
	Text   []byte `json:"text,omitempty"`   // add: the public key
	Reason string `json:"reason,omitempty"` // revoke
}

// keys lists the keys of a root or changes them, under the lock that an update takes: no
// key comes or goes in the middle of one.
func (e *Engine) keys(req Request) (any, error) {
	if req.Keys == nil {
		return nil, usage("no request about keys")
	}
	m := readWrite
	if req.Keys.Do == "list" {
		m = readOnly
	}
	s, err := openSession(e, req, m)
	if err != nil {
		return nil, err
	}
	report := &change.KeyReport{MessageType: "report", Schema: Schema, Verb: "key " + req.Keys.Do, Root: req.Root, Dir: s.keyring().Dir(), Keys: []change.TrustKey{}}
	if m == readOnly {
		defer s.close()
		return report, s.listKeys(report)
	}
	err = s.editKeys(report)
	left := newReport("key")
	s.leave(left)
	report.Warnings = append(report.Warnings, left.Warnings...)
	if err != nil {
		return nil, err
	}
	return report, nil
}

func (s *session) listKeys(report *change.KeyReport) error {
	ring := s.keyring()
	keys, err := ring.Keys()
	if err != nil {
		return err
	}
	revoked, err := ring.Revoked()
	if err != nil {
		return err
	}
	listed := map[trust.KeyID]bool{}
	for i := range keys {
		report.Keys = append(report.Keys, describeKey(&keys[i]))
		listed[keys[i].ID] = listed[keys[i].ID] || keys[i].Revoked != nil
	}
	for _, r := range revoked {
		if !listed[r.ID] {
			report.Keys = append(report.Keys, describeRevocation(r))
		}
	}
	return nil
}

func describeKey(k *trust.Key) change.TrustKey {
	out := change.TrustKey{File: k.File, State: "trusted"}
	if k.Err != nil {
		out.State, out.Reason = "unusable", k.Err.Error()
		return out
	}
	out.ID, out.Key = k.ID.String(), k.Text()
	if k.Revoked != nil {
		out.State, out.Time, out.Reason = "revoked", k.Revoked.Time, k.Revoked.Reason
	}
	return out
}

func describeRevocation(r trust.Revocation) change.TrustKey {
	return change.TrustKey{ID: r.ID.String(), State: "revoked", Time: r.Time, Reason: r.Reason}
}

func (s *session) editKeys(report *change.KeyReport) error {
	req := s.req.Keys
	dir, err := s.openKeys(req.Do != "remove")
	if errors.Is(err, fs.ErrNotExist) {
		return change.WithHint(fmt.Errorf("cannot remove %q: there is no %s", req.Which, report.Dir), "see: liveupd key list")
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	edit := &trust.Edit{Kernel: s.k, Dir: dir, Ring: s.keyring()}
	report.Result = "done"
	switch req.Do {
	case "add":
		key, added, err := edit.Add(req.Name, req.Text)
		if err != nil {
			return err
		}
		if !added {
			report.Result = "nothing-to-do"
		}
		report.Keys = append(report.Keys, describeKey(&key))
	case "remove":
		gone, err := edit.Remove(req.Which)
		if err != nil {
			return err
		}
		for i := range gone {
			report.Keys = append(report.Keys, describeKey(&gone[i]))
		}
	case "revoke":
		seen, _, err := s.seen()
		if err != nil {
			return err
		}
		revoked, added, err := edit.Revoke(req.Which, req.Reason, s.e.Clock.At(seen).Unix)
		if err != nil {
			return err
		}
		if !added {
			report.Result = "nothing-to-do"
		}
		for _, r := range revoked {
			report.Keys = append(report.Keys, describeRevocation(r))
		}
	default:
		return usage("no such verb %q on keys", req.Do)
	}
	return nil
}

// openKeys opens the folder of keys for writing, and makes it.
func (s *session) openKeys(create bool) (*sys.FD, error) {
	const resolve = sys.ResolveBeneath | sys.ResolveNoSymlinks
	fail := func(err error) error { return fmt.Errorf("cannot open the folder of keys: %w", err) }
	mount := s.mountOf(trust.KeysDir)
	if err := s.root.MakeWritable(s.k, mount); err != nil {
		return nil, fail(err)
	}
	var dir *sys.FD
	for _, v := range s.vols {
		if v.Mount == mount {
			dir = v.Dir
		}
	}
	rel := strings.Trim(strings.TrimPrefix(trust.KeysDir, mount), "/")
	dir, err := sys.OpenAt(dir, ".", sys.OpenRead|sys.OpenDir, resolve)
	if err != nil {
		return nil, fail(err)
	}
	for name := range strings.SplitSeq(rel, "/") {
		next, err := sys.OpenAt(dir, name, sys.OpenRead|sys.OpenDir|sys.OpenNoLink, resolve)
		if errors.Is(err, fs.ErrNotExist) && create {
			if err = s.k.Mkdir(dir, name, 0o755); err == nil {
				if err = s.k.Fsync(dir); err == nil {
					next, err = sys.OpenAt(dir, name, sys.OpenRead|sys.OpenDir|sys.OpenNoLink, resolve)
				}
			}
		}
		dir.Close()
		if err != nil {
			return nil, fail(fmt.Errorf("%s: %w", path.Base(name), err))
		}
		dir = next
	}
	return dir, nil
}
