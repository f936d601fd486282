package tarball

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// IDsFrom makes an Options.ID of the text of passwd(5) and group(5): those of the
// root that the archive is for. Where a name is there twice the first counts, as
// in the C library.
func IDsFrom(passwd, group []byte) func(group bool, name string) (uint32, error) {
	users, groups := readIDs(passwd), readIDs(group)
	return func(group bool, name string) (uint32, error) {
		ids, what := users, "user"
		if group {
			ids, what = groups, "group"
		}
		if id, ok := ids[name]; ok {
			return id, nil
		}
		return 0, fmt.Errorf("there is no such %s", what)
	}
}

// readIDs reads NAME:PASSWORD:NUMBER:..., passing over lines that are otherwise.
func readIDs(b []byte) map[string]uint32 {
	out := map[string]uint32{}
	for line := range bytes.Lines(b) {
		f := strings.SplitN(strings.TrimRight(string(line), "\n"), ":", 4)
		if len(f) < 3 || f[0] == "" {
			continue
		}
		id, err := strconv.ParseUint(f[2], 10, 32)
		if _, have := out[f[0]]; err == nil && !have && id <= maxID {
			out[f[0]] = uint32(id)
		}
	}
	return out
}
