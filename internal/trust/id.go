package trust

import (
	"fmt"
	"strconv"
	"strings"
)

// KeyID is a minisign key's ID: what a signature says by which key it was made.
type KeyID uint64

func (id KeyID) String() string { return fmt.Sprintf("%016X", uint64(id)) }

// MarshalText renders 16 hexadecimal digits.
func (id KeyID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads what ParseKeyID reads.
func (id *KeyID) UnmarshalText(b []byte) (err error) {
	*id, err = ParseKeyID(string(b))
	return err
}

// ParseKeyID reads an ID as minisign prints it: up to 16 hexadecimal digits, without
// zeros in front where there are fewer.
func ParseKeyID(s string) (KeyID, error) {
	n, err := strconv.ParseUint(s, 16, 64)
	if err != nil || s == "" || len(s) > 16 || strings.ContainsAny(s, "+-_") {
		return 0, fmt.Errorf("%.40q is not a key ID of up to 16 hexadecimal digits", s)
	}
	return KeyID(n), nil
}

// parseCanonical reads an ID that a program wrote.
func parseCanonical(s string) (KeyID, error) {
	id, err := ParseKeyID(s)
	if err == nil && id.String() != s {
		err = fmt.Errorf("%.40q is not a key ID of 16 hexadecimal digits in capitals", s)
	}
	return id, err
}
