package trust

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/liveupd/liveupd/change"
)

// Head is what the signer says of an update as a whole. Zero values are "not said".
type Head struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
	// Sequence orders the updates of one name.
	Sequence uint64 `json:"sequence"`
	// Expires is when the update is no longer accepted, Signed when it was signed, both in
	// seconds since the epoch.
	Expires int64 `json:"expires,omitempty"`
	Signed  int64 `json:"signed,omitempty"`
	// Revokes are keys that are no longer trusted once the update is verified. Ascending.
	Revokes []KeyID `json:"revokes,omitempty"`
}

const (
	maxText    = 255
	maxRevokes = 256
	// maxTime is the end of the year 9999, beyond which RFC 3339 cannot write.
	maxTime = 253402300799
)

// Check refuses a head that could not be written or cannot be meant.
func (h *Head) Check() error {
	for _, t := range []struct{ key, value string }{{"name", h.Name}, {"version", h.Version}} {
		if err := CheckText(t.value); err != nil {
			return fmt.Errorf("%s: %w", t.key, err)
		}
	}
	for _, t := range []struct {
		key   string
		value int64
	}{{"expires", h.Expires}, {"signed", h.Signed}} {
		if t.value < 0 || t.value > maxTime {
			return fmt.Errorf("%s: %d is no time between 1970 and 9999", t.key, t.value)
		}
	}
	if h.Expires != 0 && h.Signed > h.Expires {
		return fmt.Errorf("it was signed on %s and expires before that, on %s", Date(h.Signed), Date(h.Expires))
	}
	return CheckRevokes(h.Revokes)
}

// CheckRevokes wants keys ascending, each once.
func CheckRevokes(ids []KeyID) error {
	if len(ids) > maxRevokes {
		return fmt.Errorf("revokes: more than %d keys", maxRevokes)
	}
	for i := 1; i < len(ids); i++ {
		if ids[i] <= ids[i-1] {
			return fmt.Errorf("revokes: %s does not come after %s", ids[i], ids[i-1])
		}
	}
	return nil
}

// SortKeyIDs gives the keys ascending, each once.
func SortKeyIDs(ids []KeyID) []KeyID {
	ids = slices.Clone(ids)
	slices.Sort(ids)
	return slices.Compact(ids)
}

// Join is what two places say of one update: where one is silent the other
// counts; where they differ, the update is not what one of them says.
func (h Head) Join(other Head) (Head, error) {
	var errs []error
	h.Name = agree(&errs, "name", h.Name, other.Name)
	h.Version = agree(&errs, "version", h.Version, other.Version)
	h.Sequence = agree(&errs, "sequence", h.Sequence, other.Sequence)
	h.Expires = agree(&errs, "expires", h.Expires, other.Expires)
	h.Signed = max(h.Signed, other.Signed) // an archive is signed after what lies in it
	switch {
	case len(h.Revokes) == 0:
		h.Revokes = other.Revokes
	case len(other.Revokes) > 0 && !slices.Equal(h.Revokes, other.Revokes):
		errs = append(errs, errors.New("revokes"))
	}
	if len(errs) > 0 {
		return h, errs[0]
	}
	return h, nil
}

func agree[T comparable](errs *[]error, key string, a, b T) T {
	var silent T
	if a == silent {
		return b
	}
	if b != silent && a != b {
		*errs = append(*errs, errors.New(key))
	}
	return a
}

// String names the update in a message.
func (h Head) String() string {
	s := "an update without a name"
	if h.Name != "" {
		s = strconv.Quote(h.Name)
	}
	if h.Version != "" {
		s += " " + h.Version
	}
	if h.Sequence != 0 {
		s += fmt.Sprintf(" (sequence %d)", h.Sequence)
	}
	return s
}

// CheckText refuses names that would garble a terminal or a record.
func CheckText(s string) error {
	if len(s) > maxText {
		return fmt.Errorf("longer than %d bytes", maxText)
	}
	if !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
		return fmt.Errorf("%q holds control characters or is not UTF-8", s)
	}
	return nil
}

// ParseTime reads RFC 3339, or seconds since the epoch.
func ParseTime(s string) (int64, error) {
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		if n <= 0 || n > maxTime {
			return 0, fmt.Errorf("%d is no time between 1970 and 9999", n)
		}
		return n, nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return 0, fmt.Errorf("%.40q is no time: want RFC 3339 (2027-01-31T00:00:00Z) or seconds since 1970", s)
	}
	if t.Unix() <= 0 || t.Unix() > maxTime {
		return 0, fmt.Errorf("%s is no time between 1970 and 9999", s)
	}
	return t.Unix(), nil
}

// Date renders seconds since the epoch for a person.
func Date(unix int64) string { return time.Unix(unix, 0).UTC().Format("2006-01-02 15:04:05 UTC") }

// The trusted comment of an archive's signature is signed with it, and says
// what no line inside the archive could say without changing it: fields KEY:VALUE
// apart by tabs, as minisign itself writes them ("timestamp:N", "file:NAME", "hashed"),
// and of ours name, version, sequence, expires, revokes and comment. Other fields are
// passed over: a comment may be anything.

// Comment renders a head as a trusted comment of the file called file.
func (h Head) Comment(file, free string) (string, error) {
	var fields []string
	add := func(key, value string) {
		if value != "" {
			fields = append(fields, key+":"+value)
		}
	}
	number := func(key string, value uint64) {
		if value != 0 {
			add(key, strconv.FormatUint(value, 10))
		}
	}
	ids := make([]string, 0, len(h.Revokes))
	for _, id := range h.Revokes {
		ids = append(ids, id.String())
	}
	number("timestamp", uint64(max(h.Signed, 0)))
	add("file", file)
	fields = append(fields, "hashed")
	add("name", h.Name)
	add("version", h.Version)
	number("sequence", h.Sequence)
	number("expires", uint64(max(h.Expires, 0)))
	add("revokes", strings.Join(ids, ","))
	add("comment", free)
	for _, f := range fields {
		if !utf8.ValidString(f) || strings.ContainsFunc(f, unicode.IsControl) {
			return "", fmt.Errorf("%q holds control characters or is not UTF-8", f)
		}
	}
	text := strings.Join(fields, "\t")
	// minisign reads no more of a trusted comment than 8 KiB.
	if len(text) > 8000 {
		return "", errors.New("the comment is longer than 8000 bytes")
	}
	return text, nil
}

// ParseComment reads what Comment writes, and what minisign writes by itself.
func ParseComment(text string) (Head, error) {
	var h Head
	seen := map[string]bool{}
	for field := range strings.SplitSeq(text, "\t") {
		key, value, ok := strings.Cut(field, ":")
		if !ok {
			continue
		}
		var err error
		switch key {
		case "name":
			h.Name = value
		case "version":
			h.Version = value
		case "sequence":
			h.Sequence, err = strconv.ParseUint(value, 10, 64)
		case "expires":
			h.Expires, err = ParseTime(value)
		case "timestamp":
			h.Signed, err = ParseTime(value)
		case "revokes":
			for id := range strings.SplitSeq(value, ",") {
				var k KeyID
				if k, err = parseCanonical(id); err != nil {
					break
				}
				h.Revokes = append(h.Revokes, k)
			}
		default:
			continue
		}
		if err == nil && seen[key] {
			err = errors.New("it is there twice")
		}
		if err != nil {
			return Head{}, fmt.Errorf("its signed comment: %s: %w: %w", key, err, change.ErrVerification)
		}
		seen[key] = true
	}
	if err := h.Check(); err != nil {
		return Head{}, fmt.Errorf("its signed comment: %w: %w", err, change.ErrVerification)
	}
	return h, nil
}
