package trust

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// What lies in .liveupd, mode 0600: the State, and a Claim for each transaction under way.
// Each is one line "CRC JSON\n", CRC the CRC-32C of the JSON in 8 hexadecimal digits.
const (
	StateFile   = "trust"
	ClaimPrefix = "claim-"
)

const (
	stateFormat = 1
	maxState    = 16 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// State is what a root has seen; see the package comment.
type State struct {
	Format  int              `json:"format"`
	Time    int64            `json:"time"` // newest signed time, seconds since the epoch
	Floors  map[string]Floor `json:"floors,omitempty"`
	Revoked []Revocation     `json:"revoked,omitempty"`
}

// Floor is the newest verified update of one name.
type Floor struct {
	Sequence uint64 `json:"sequence"`
	Version  string `json:"version,omitempty"`
	Signer   KeyID  `json:"signer"`
}

// Claim is what a signed update says that is under way, and who has signed it.
type Claim struct {
	Head
	Signer KeyID `json:"signer"`
}

// ReadState reads the state below dir, a root's .liveupd; nil and where there is none:
// nothing was seen. One that is damaged is an error: an empty one would let
// old updates in.
func ReadState(dir *sys.FD) (*State, error) {
	s := &State{Format: stateFormat}
	if dir == nil {
		return s, nil
	}
	text, err := readFile(dir, StateFile, maxState)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		s, err = parseState(text)
	}
	if err != nil {
		return nil, change.WithHint(fmt.Errorf("cannot read which updates were seen, .liveupd/%s: %w: %w", StateFile, err, change.ErrVerification),
			"without it an old update could be replayed. Put it back from a backup; or remove it, and older signed updates are accepted again")
	}
	return s, nil
}

func parseState(text []byte) (*State, error) {
	s := new(State)
	if err := decodeLine(text, s); err != nil {
		return nil, err
	}
	if s.Format != stateFormat {
		return nil, fmt.Errorf("its format is %d, and this program knows %d", s.Format, stateFormat)
	}
	return s, nil
}

// Write writes the state durably: the old one or the new one, whatever happens.
func (s *State) Write(k *sys.Kernel, dir *sys.FD) error {
	s.Format = stateFormat
	line, err := encodeLine(s)
	if err == nil {
		err = replaceFile(k, dir, StateFile, line, 0o600)
	}
	if err != nil {
		return fmt.Errorf("cannot record which update was seen: %w", err)
	}
	return nil
}

// Judge refuses an update that is older than what was seen, or expired; what names it.
func (s *State) Judge(what string, h Head, now Instant) error {
	if floor, ok := s.Floors[h.Name]; ok && h.Sequence < floor.Sequence {
		seen := Head{Name: h.Name, Version: floor.Version, Sequence: floor.Sequence}
		return change.WithHint(
			fmt.Errorf("cannot accept %s: it is older than what this root has seen: %s, and %s was applied before: %w", what, h, seen, change.ErrVerification),
			"get the newest update; what is kept of older ones comes back with: liveupd rollback")
	}
	if h.Expires != 0 && now.Unix >= h.Expires {
		return change.WithHint(
			fmt.Errorf("cannot accept %s: %s expired on %s, and it is %s by %s: %w", what, h, Date(h.Expires), Date(now.Unix), now.By, change.ErrVerification),
			"get a newer update, or have this one signed anew: liveupd sign --expires")
	}
	return nil
}

// Accept takes in an update that was verified at a time. It tells whether anything changed.
func (s *State) Accept(c Claim, when int64) (changed bool) {
	if s.Floors == nil {
		s.Floors = map[string]Floor{}
	}
	if c.Sequence > s.Floors[c.Name].Sequence {
		s.Floors[c.Name] = Floor{Sequence: c.Sequence, Version: c.Version, Signer: c.Signer}
		changed = true
	}
	if c.Signed > s.Time {
		s.Time, changed = c.Signed, true
	}
	for _, id := range c.Revokes {
		if id == c.Signer || slices.ContainsFunc(s.Revoked, func(r Revocation) bool { return r.ID == id }) {
			continue // nobody gives the last word on himself: who has stolen a key would
		}
		s.Revoked = append(s.Revoked, Revocation{ID: id, Time: when, Reason: "by " + shorten(c.Head.String())})
		changed = true
	}
	return changed
}

// shorten keeps a reason within what CheckText allows.
func shorten(s string) string {
	const most = 200
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "")
}

// WriteClaim lays a claim beside the state, for the transaction with this ID.
func WriteClaim(k *sys.Kernel, dir *sys.FD, id string, c Claim) error {
	line, err := encodeLine(c)
	if err == nil {
		err = replaceFile(k, dir, ClaimPrefix+id, line, 0o600)
	}
	if err != nil {
		return fmt.Errorf("cannot note what the update claims: %w", err)
	}
	return nil
}

// ReadClaims gives the claims by transaction.
func ReadClaims(dir *sys.FD) (map[string]Claim, error) {
	if dir == nil {
		return nil, nil
	}
	names, err := sys.ReadDirNames(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot list what updates claim: %w", err)
	}
	out := map[string]Claim{}
	for _, name := range names {
		id, ok := strings.CutPrefix(name, ClaimPrefix)
		if !ok || strings.HasSuffix(name, besideSuffix) {
			continue
		}
		var c Claim
		text, err := readFile(dir, name, maxState)
		if err == nil {
			c, err = parseClaim(text)
		}
		if err != nil {
			return nil, change.WithHint(fmt.Errorf("cannot read .liveupd/%s: %w: %w", name, err, change.ErrVerification),
				"it says which update is under way; remove it, and an older one may be applied")
		}
		out[id] = c
	}
	return out, nil
}

func parseClaim(text []byte) (c Claim, err error) {
	if err = decodeLine(text, &c); err == nil {
		err = c.Check()
	}
	return c, err
}

// DropClaim removes a claim; its absence is no error.
func DropClaim(k *sys.Kernel, dir *sys.FD, id string) error {
	if err := k.Unlink(dir, ClaimPrefix+id); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot drop what the update claimed: %w", err)
	}
	return nil
}

func encodeLine(v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "%08x %s\n", crc32.Checksum(body, castagnoli), body), nil
}

func decodeLine(line []byte, v any) error {
	crc, body, _ := bytes.Cut(line, []byte(" "))
	body, ok := bytes.CutSuffix(body, []byte("\n"))
	if !ok || string(crc) != fmt.Sprintf("%08x", crc32.Checksum(body, castagnoli)) {
		return errors.New("it is damaged")
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("it is damaged: something stands behind its end")
	}
	return nil
}

// Clock tells the time that counts. The zero value is right for use.
type Clock struct {
	Now   func() time.Time // the system's clock; nil is time.Now
	Build func() time.Time // the program's own; nil is BuildTime
}

// Instant is a time, in seconds since the epoch, and by what it is known.
type Instant struct {
	Unix int64
	By   string
}

// At is the latest of the clock, the build and what was seen.
func (c Clock) At(s *State) Instant {
	now, build := time.Now, BuildTime
	if c.Now != nil {
		now = c.Now
	}
	if c.Build != nil {
		build = c.Build
	}
	out := Instant{now().Unix(), "the clock"}
	if b := build().Unix(); b > out.Unix {
		out = Instant{b, "the age of this program (the clock is behind)"}
	}
	if s != nil && s.Time > out.Unix {
		out = Instant{s.Time, "the newest update that was seen (the clock is behind)"}
	}
	return out
}

const besideSuffix = ".new"

// replaceFile makes a small file durably and atomically.
func replaceFile(k *sys.Kernel, dir *sys.FD, name string, b []byte, mode uint32) error {
	beside := name + besideSuffix
	if err := k.Unlink(dir, beside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := k.Create(dir, beside, mode)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := k.Chmod(dir, beside, mode); err != nil { // whatever the umask
		return err
	}
	if err := k.Write(f, b); err != nil {
		return err
	}
	if err := k.Fsync(f); err != nil {
		return err
	}
	if err := k.Rename(dir, beside, dir, name, 0); err != nil {
		return err
	}
	return k.Fsync(dir)
}
