package rootfs

import (
	"path"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// maxGlob bounds what one pattern may name.
const maxGlob = 10000

// glob lists the paths that a pattern names, sorted within each folder:
// path.Match's wildcards in each component, and "**" for any number of
// folders. A pattern without wildcards names its path, whether it is there or not.
func glob(t *tree, pattern string) []string {
	pattern = path.Clean(pattern)
	if !strings.ContainsAny(pattern, `*?[`) {
		return []string{pattern}
	}
	var out []string
	expand(t, "/", strings.Split(strings.TrimPrefix(pattern, "/"), "/"), &out)
	return out
}

func expand(t *tree, dir string, parts []string, out *[]string) {
	if len(*out) >= maxGlob {
		return
	}
	part, rest := parts[0], parts[1:]
	if part == "**" {
		if len(rest) > 0 {
			expand(t, dir, rest, out)
		}
		names, err := t.ReadDir(dir)
		if err != nil {
			return
		}
		for _, name := range names {
			p := join(dir, name)
			n, err := t.Lstat(p) // a symlink to a folder is not entered: it may lead up
			switch {
			case err != nil:
			case n.IsDir():
				expand(t, p, parts, out)
			case len(rest) == 0:
				*out = append(*out, p)
			}
		}
		return
	}
	if !strings.ContainsAny(part, `*?[`) {
		p := join(dir, part)
		if len(rest) > 0 {
			expand(t, p, rest, out)
		} else if _, err := t.Lstat(p); err == nil {
			*out = append(*out, p)
		}
		return
	}
	names, err := t.ReadDir(dir)
	if err != nil {
		return
	}
	for _, name := range names {
		if strings.HasPrefix(name, ".") && !strings.HasPrefix(part, ".") {
			continue
		}
		if ok, err := path.Match(part, name); err != nil || !ok {
			continue
		}
		p := join(dir, name)
		if len(rest) > 0 {
			expand(t, p, rest, out)
		} else {
			*out = append(*out, p)
		}
	}
}

// filesBelow lists the files of a folder and its folders.
func filesBelow(t *tree, dir string) []string {
	n, err := t.stat2(dir)
	if err != nil || n.Type != change.Directory {
		return nil
	}
	var out []string
	expand(t, path.Clean(dir), []string{"**"}, &out)
	return out
}
