package trust

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"testing"
)

func FuzzParseKey(f *testing.F) {
	f.Add([]byte("untrusted comment: minisign public key B7550C12B7FD8B5A\nRWRai/23EgxVt5Cr4/AxEiW3hscJ8mSzm4lrwsvUeugELjr6Ry4BI7HQ\n"))
	f.Add([]byte("RWRai/23EgxVt5Cr4/AxEiW3hscJ8mSzm4lrwsvUeugELjr6Ry4BI7HQ"))
	f.Fuzz(func(t *testing.T, text []byte) {
		key, err := ParseKey(text)
		if err != nil {
			return
		}
		again, err := ParseKey(publicText(key))
		if err != nil || !again.Equal(key) || len(rawKey(key)) != keySize {
			t.Fatalf("accepted %q, writes %q: %v", text, publicText(key), err)
		}
	})
}

func FuzzParseSignature(f *testing.F) {
	f.Add([]byte("untrusted comment: signature from liveupd, key B7550C12B7FD8B5A\nRURai/23EgxVtyPLwz1idh1MoSPrcxrwCr7qlDWrCxpviLz/LYRrUaO3wN9eugr3KchPfj3lgG1tibaBagbyE1BmHN1g4F5xLAg=\ntrusted comment: timestamp:1795230764\tfile:liveupd.manifest\thashed\nuts9PFBZ8itWhl2NPst+i0PTeW/wkq8JoyYhJjxEZeoOZnl0xTXGJz4KXx37gJuEuwgHngni5SbQ4wazndoGCA==\n"))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, sig []byte) {
		if _, err := NewKeyring(Options{Dir: dir}).Confirm("it", Text("text"), "it.minisig", sig); err == nil {
			t.Fatalf("no key confirms, and accepted: %q", sig)
		}
		if s, err := parseSignature(sig); err == nil {
			_, _ = ParseComment(s.TrustedComment)
		}
	})
}

func FuzzParseRevoked(f *testing.F) {
	f.Add([]byte("# a comment\n\nB7550C12B7FD8B5A 2026-11-21T03:12:44Z RWRai/23EgxVt5Cr4/AxEiW3hscJ8mSzm4lrwsvUeugELjr6Ry4BI7HQ laptop stolen\n1 1700000000 - x\nA\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		list, err := ParseRevoked(text)
		if err != nil {
			return
		}
		for _, r := range list {
			if r.Time == 0 {
				r.Time = 1
			}
			again, err := ParseRevoked([]byte(formatRevocation(r)))
			if err != nil || len(again) != 1 || again[0].ID != r.ID || again[0].Time != r.Time || again[0].Reason != r.Reason || !bytes.Equal(again[0].Key, r.Key) {
				t.Fatalf("%+v is written as %q and read as %+v, %v", r, formatRevocation(r), again, err)
			}
		}
	})
}

func FuzzParseState(f *testing.F) {
	for _, v := range []any{&State{Format: 1, Time: 5, Floors: map[string]Floor{"a": {Sequence: 1}}, Revoked: []Revocation{{ID: 1, Time: 2}}}, &State{}} {
		line, err := encodeLine(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(line[9:])
	}
	f.Add([]byte("{\"format\":1} {}\n"))
	f.Fuzz(func(t *testing.T, body []byte) {
		// The sum is made right: no mutation would find one.
		line := slices.Concat(sumOf(bytes.TrimSuffix(body, []byte("\n"))), []byte(" "), body)
		if s, err := parseState(line); err == nil {
			again, err := encodeLine(s)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := parseState(again); err != nil {
				t.Fatalf("accepted %q, writes %q: %v", line, again, err)
			}
		}
		if c, err := parseClaim(line); err == nil && c.Check() != nil {
			t.Fatalf("accepted the claim %q", line)
		}
		_, _ = parseState(body)
	})
}

func FuzzParseComment(f *testing.F) {
	f.Add("timestamp:1000\tfile:x\thashed\tname:app\tversion:1\tsequence:3\texpires:2000\trevokes:0000000000000001,0000000000000002\tcomment:x")
	f.Fuzz(func(t *testing.T, text string) {
		h, err := ParseComment(text)
		if err != nil {
			return
		}
		again, err := h.Comment("x", "")
		if err != nil {
			t.Fatalf("accepted %q and cannot write it: %v", text, err)
		}
		if back, err := ParseComment(again); err != nil || back.String() != h.String() || back.Expires != h.Expires || back.Signed != h.Signed || !slices.Equal(back.Revokes, h.Revokes) {
			t.Fatalf("accepted %q, writes %q: %v", text, again, err)
		}
	})
}

func FuzzReadSecret(f *testing.F) {
	s, err := GenerateSecret()
	if err != nil {
		f.Fatal(err)
	}
	text, err := s.Text("")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Fuzz(func(t *testing.T, text []byte) {
		// Without a password nothing is decrypted: that takes a gigabyte.
		s, err := ReadSecret(text, func() (string, error) { return "", errNoPassword })
		if err != nil {
			return
		}
		if _, err := s.Sign(strings.NewReader("x"), "y"); err != nil {
			t.Fatal(err)
		}
	})
}

var errNoPassword = errors.New("no password")

func sumOf(body []byte) []byte { return fmt.Appendf(nil, "%08x", crc32.Checksum(body, castagnoli)) }
