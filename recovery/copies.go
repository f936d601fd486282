package recovery

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// made are files that the tools write into an initrd themselves: those of the
// root with the same names are others.
var made = []string{"/etc/passwd", "/etc/group", "/etc/hostname", "/etc/ld.so.cache", "/etc/os-release", "/etc/mtab", "/etc/fstab"}

// Copies gives those of paths of which an initrd of the root holds a copy. What
// cannot be read holds none. The names in each initrd are kept in the file
// cache, for to unpack one takes a second; "" keeps nothing.
func (s *State) Copies(root, cache string, paths []string) ([]string, error) {
	wanted := map[string]string{}
	for _, p := range paths {
		if !slices.Contains(made, p) {
			wanted[unmerged(p)] = p
		}
	}
	if len(wanted) == 0 || len(s.Kernels) == 0 {
		return nil, nil
	}
	r, err := os.OpenRoot(root)
	if err != nil {
		return nil, fmt.Errorf("cannot look into the initrds: %w", err)
	}
	defer r.Close()
	known := loadNames(cache)
	current := map[string][]string{}
	found := map[string]bool{}
	for _, k := range s.Kernels {
		if k.Initrd == "" {
			continue
		}
		key, names := namesIn(r, strings.TrimPrefix(k.Initrd, "/"), known)
		if key != "" {
			current[key] = names
		}
		for _, n := range names {
			if p, ok := wanted[n]; ok {
				found[p] = true
			}
		}
	}
	if cache != "" && len(current) > 0 {
		saveNames(cache, current)
	}
	var out []string
	for p := range found {
		out = append(out, p)
	}
	slices.Sort(out)
	return out, nil
}

// unmerged is a path by its name of before the merge of /usr.
func unmerged(p string) string {
	rest, ok := strings.CutPrefix(p, "/usr/")
	if !ok {
		return p
	}
	for _, top := range []string{"bin/", "sbin/", "lib/", "lib32/", "lib64/", "libx32/"} {
		if strings.HasPrefix(rest, top) {
			return "/" + rest
		}
	}
	return p
}

func namesIn(r *os.Root, name string, known map[string][]string) (key string, names []string) {
	f, err := r.Open(name)
	if err != nil {
		return "", nil
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return "", nil
	}
	if node, ok := st.Sys().(*syscall.Stat_t); ok {
		key = fmt.Sprintf("%d %d %d.%d %d", node.Dev, node.Ino, node.Ctim.Sec, node.Ctim.Nsec, node.Size)
		if names, ok := known[key]; ok {
			return key, names
		}
	}
	c := contents{each: func(n string) { names = append(names, unmerged("/"+n)) }}
	if err := c.segments(bufio.NewReaderSize(f, 1<<16), 0); err != nil {
		return "", nil
	}
	slices.Sort(names)
	return key, slices.Compact(names)
}

// loadNames reads the cache as loadVerdicts does.
func loadNames(file string) map[string][]string {
	out := map[string][]string{}
	st, err := os.Lstat(file)
	if err != nil || !st.Mode().IsRegular() || st.Mode().Perm()&0o022 != 0 {
		return out
	}
	if owner, ok := st.Sys().(*syscall.Stat_t); !ok || owner.Uid != uint32(os.Geteuid()) {
		return out
	}
	b, err := os.ReadFile(file)
	if err != nil || json.Unmarshal(b, &out) != nil || out == nil {
		return map[string][]string{}
	}
	return out
}

// saveNames costs the next run time only where it fails.
func saveNames(file string, names map[string][]string) {
	b, err := json.Marshal(names)
	if err != nil || os.MkdirAll(filepath.Dir(file), 0o700) != nil {
		return
	}
	beside := fmt.Sprintf("%s.%d", file, os.Getpid())
	if os.WriteFile(beside, b, 0o600) != nil || os.Rename(beside, file) != nil {
		_ = os.Remove(beside)
	}
}
