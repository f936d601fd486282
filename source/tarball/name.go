package tarball

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// storeName is liveupd's own folder on each file system.
const storeName = ".liveupd"

// quote renders a name for a message: always in quotation marks, and so that
// bytes that are not printable ASCII cannot reach a terminal. A long name loses its middle.
func quote(name string) string {
	const most = 160
	if len(name) > most {
		return strconv.QuoteToASCII(name[:most/2]) + "..." + strconv.QuoteToASCII(name[len(name)-most/2:])
	}
	return strconv.QuoteToASCII(name)
}

// refuse says what is wrong with an entry that is an attack or damage: exit 6.
func refuse(entry, format string, args ...any) error {
	return fmt.Errorf("%s %s: %w", quote(entry), fmt.Sprintf(format, args...), change.ErrVerification)
}

// cannot says what is not supported of an entry that may well be honest: exit 1.
func cannot(entry, format string, args ...any) error {
	return fmt.Errorf("%s %s", quote(entry), fmt.Sprintf(format, args...))
}

// damaged says what is wrong with the stream where no entry can be named.
func damaged(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), change.ErrVerification)
}

// splitName takes a name of the archive apart. It gives no components for the
// root itself. "./" in front, doubled slashes and "." inside are passed over;
// slash tells that the name ends with a slash.
func splitName(name string, depth int) (parts []string, slash bool, err error) {
	switch {
	case name == "":
		return nil, false, errors.New("is an empty name")
	case strings.IndexByte(name, 0) >= 0:
		return nil, false, errors.New("holds a NUL byte")
	case name[0] == '/':
		return nil, false, errors.New("is an absolute name")
	}
	slash = name[len(name)-1] == '/'
	length := -1
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "", ".":
			continue
		case "..":
			return nil, false, errors.New("has a component .. and could leave the tree")
		case storeName:
			return nil, false, fmt.Errorf("lies in %s, which is liveupd's own", storeName)
		}
		if len(part) > maxComponent {
			return nil, false, fmt.Errorf("has a component of %d bytes, more than the %d that a name can have", len(part), maxComponent)
		}
		if len(parts) == depth {
			return nil, false, fmt.Errorf("lies more than %d folders deep", depth)
		}
		parts = append(parts, part)
		length += 1 + len(part)
	}
	if length > maxPath {
		return nil, false, fmt.Errorf("is %d bytes long, more than the %d that a path can have", length, maxPath)
	}
	return parts, slash, nil
}
