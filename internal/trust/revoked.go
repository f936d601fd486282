package trust

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"time"

	"aead.dev/minisign"
)

// RevokedFile is the list of revoked keys, beside the keys.
const RevokedFile = "revoked"

const maxRevoked = 1 << 20

// Revocation is one key that never confirms anything again.
type Revocation struct {
	ID     KeyID  `json:"id"`
	Time   int64  `json:"time"`          // seconds since the epoch
	Key    []byte `json:"key,omitempty"` // the public key's 42 bytes, where it was known
	Reason string `json:"reason,omitempty"`
}

func (r Revocation) String() string {
	s := fmt.Sprintf("key %s was revoked on %s", r.ID, time.Unix(r.Time, 0).UTC().Format(time.DateOnly))
	if r.Reason != "" {
		s += " (" + r.Reason + ")"
	}
	return s
}

// covers tells whether the revocation is of this key: of its ID, or of the key itself
// under another ID.
func (r *Revocation) covers(key minisign.PublicKey) bool {
	return r.ID == KeyID(key.ID()) || len(r.Key) == keySize && bytes.Equal(r.Key[keyOffset:], rawKey(key)[keyOffset:])
}

// A public key is "Ed", its ID (8 bytes) and 32 bytes of Ed25519.
const (
	keySize   = 2 + keyID + 32
	keyID     = 8
	keyOffset = 2 + keyID
)

func rawKey(key minisign.PublicKey) []byte {
	raw, err := base64.StdEncoding.DecodeString(key.String())
	if err != nil || len(raw) != keySize {
		panic("minisign wrote a public key that is none: " + key.String()) // by its own format
	}
	return raw
}

// findRevoked gives the revocation that covers the key.
func findRevoked(list []Revocation, key minisign.PublicKey) *Revocation {
	if i := slices.IndexFunc(list, func(r Revocation) bool { return r.covers(key) }); i >= 0 {
		return &list[i]
	}
	return nil
}

// ParseRevoked reads the list of revoked keys; see the package comment.
func ParseRevoked(text []byte) ([]Revocation, error) {
	if len(text) > maxRevoked {
		return nil, fmt.Errorf("longer than %d bytes", maxRevoked)
	}
	var out []Revocation
	no := 0
	for line := range strings.Lines(string(text)) {
		no++
		line = strings.TrimRight(line, "\r\n")
		if strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#") {
			continue
		}
		r, err := parseRevocation(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", no, err)
		}
		out = append(out, r)
	}
	return out, nil
}

func parseRevocation(line string) (r Revocation, err error) {
	word, rest, _ := strings.Cut(line, " ")
	if r.ID, err = ParseKeyID(word); err != nil {
		return r, err
	}
	if rest == "" {
		return r, nil // written by hand: the ID is what counts
	}
	word, rest, _ = strings.Cut(rest, " ")
	if r.Time, err = parseDay(word); err != nil {
		return r, err
	}
	// A reason that is written by hand may follow at once. No word is 42 bytes of base64.
	word, reason, _ := strings.Cut(rest, " ")
	if key, err := base64.StdEncoding.DecodeString(word); err == nil && len(key) == keySize {
		r.Key, rest = key, reason
	} else if word == "-" {
		rest = reason
	}
	r.Reason = rest
	if err = CheckText(r.Reason); err != nil {
		return r, fmt.Errorf("the reason: %w", err)
	}
	return r, nil
}

// parseDay reads what ParseTime reads, or a day alone.
func parseDay(s string) (int64, error) {
	if day, err := time.Parse(time.DateOnly, s); err == nil && day.Unix() > 0 && day.Unix() <= maxTime {
		return day.Unix(), nil
	}
	return ParseTime(s)
}

// formatRevocation is the inverse of parseRevocation.
func formatRevocation(r Revocation) string {
	key := "-"
	if len(r.Key) > 0 {
		key = base64.StdEncoding.EncodeToString(r.Key)
	}
	line := fmt.Sprintf("%s %s %s", r.ID, time.Unix(r.Time, 0).UTC().Format(time.RFC3339), key)
	if r.Reason != "" {
		line += " " + r.Reason
	}
	return line + "\n"
}
