package journal

import (
	"fmt"
	"strconv"
	"strings"
)

// Name is a path or file name: bytes, not text. As text it is printable ASCII,
// each other byte and the percent sign as %XX.
type Name string

const hexDigits = "0123456789ABCDEF"

func plain(c byte) bool { return c >= 0x20 && c < 0x7f && c != '%' }

// MarshalText never fails.
func (n Name) MarshalText() ([]byte, error) { return []byte(n.text()), nil }

func (n Name) text() string {
	out := make([]byte, 0, len(n))
	for i := range len(n) {
		if c := n[i]; plain(c) {
			out = append(out, c)
		} else {
			out = append(out, '%', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return string(out)
}

// UnmarshalText takes only what MarshalText writes.
func (n *Name) UnmarshalText(text []byte) error {
	var out strings.Builder
	for i := 0; i < len(text); i++ {
		c := text[i]
		if c != '%' {
			if !plain(c) {
				return fmt.Errorf("cannot read name %q: byte %d is not printable", text, i)
			}
			out.WriteByte(c)
			continue
		}
		if i+2 >= len(text) {
			return fmt.Errorf("cannot read name %q: it ends within %%XX", text)
		}
		v, err := strconv.ParseUint(string(text[i+1:i+3]), 16, 8)
		if err != nil {
			return fmt.Errorf("cannot read name %q: %q is not %%XX", text, text[i:i+3])
		}
		out.WriteByte(byte(v))
		i += 2
	}
	*n = Name(out.String())
	return nil
}
