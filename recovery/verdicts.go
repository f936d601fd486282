package recovery

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/liveupd/liveupd/internal/journal"
)

// verdicts remembers what was found in initrds: to unpack one takes a second.
type verdicts struct {
	file  string // "" keeps nothing
	known map[string]remembered
	fresh bool
}

type remembered struct {
	Recovers string `json:"recovers"`
	Detail   string `json:"detail,omitempty"`
}

// loadVerdicts reads the cache; one that cannot be read, or that somebody else
// could have written, is an empty one.
func loadVerdicts(file string) *verdicts {
	v := &verdicts{file: file, known: map[string]remembered{}}
	if file == "" {
		return v
	}
	st, err := os.Lstat(file)
	if err != nil || !st.Mode().IsRegular() || st.Mode().Perm()&0o022 != 0 {
		return v
	}
	if owner, ok := st.Sys().(*syscall.Stat_t); !ok || owner.Uid != uint32(os.Geteuid()) {
		return v
	}
	b, err := os.ReadFile(file)
	if err == nil && json.Unmarshal(b, &v.known) != nil || v.known == nil {
		v.known = map[string]remembered{}
	}
	return v
}

// save writes the cache where something was added. A failure costs the next run time only.
func (v *verdicts) save() {
	if v.file == "" || !v.fresh {
		return
	}
	b, err := json.Marshal(v.known)
	if err != nil || os.MkdirAll(filepath.Dir(v.file), 0o700) != nil {
		return
	}
	beside := fmt.Sprintf("%s.%d", v.file, os.Getpid())
	if os.WriteFile(beside, b, 0o600) != nil || os.Rename(beside, v.file) != nil {
		_ = os.Remove(beside) // it was not made, or is of no use
	}
}

// judge reads a file, unless it is one that was read before.
func (v *verdicts) judge(root *os.Root, name string, read func(*os.File) (contents, error)) (recovers, detail string) {
	f, err := root.Open(name)
	if err != nil {
		return "unknown", err.Error()
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return "unknown", "it is no regular file"
	}
	key := ""
	if node, ok := st.Sys().(*syscall.Stat_t); ok {
		key = fmt.Sprintf("%d %d %d %d.%d %d %s", journal.Version, node.Dev, node.Ino, node.Ctim.Sec, node.Ctim.Nsec, node.Size, filepath.Join(root.Name(), name))
		if r, ok := v.known[key]; ok {
			return r.Recovers, r.Detail
		}
	}
	recovers, detail = verdict(read(f))
	if key != "" {
		v.known[key], v.fresh = remembered{recovers, detail}, true
	}
	return recovers, detail
}
