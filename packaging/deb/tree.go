package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/md5" //nolint:gosec // the format of DEBIAN/md5sums
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// entry is one file of the package.
type entry struct {
	mode    fs.FileMode
	content []byte
	from    string // or the file that it is a copy of
	link    string // or a symlink's target
	dir     bool   // or an empty folder
}

// tree is what the package ships, by path without a leading slash.
type tree map[string]entry

func (t tree) add(name string, mode fs.FileMode, content []byte) {
	t[name] = entry{mode: mode, content: content}
}

// addCompressed is what Debian's policy wants of documents and man pages: gzip -9n.
func (t tree) addCompressed(name string, content []byte) error {
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return err
	}
	if _, err := w.Write(content); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	t.add(name+".gz", 0o644, out.Bytes())
	return nil
}

func (t tree) names() []string {
	names := make([]string, 0, len(t))
	for name := range t {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// read gives a file's content.
func (e entry) read() ([]byte, error) {
	if e.from != "" {
		return os.ReadFile(e.from)
	}
	return e.content, nil
}

// stage writes the tree below dir, with the modes that it says and not what a umask makes of them.
func (t tree) stage(dir string) error {
	for _, name := range t.names() {
		e, at := t[name], filepath.Join(dir, name)
		for parent := range parents(name) {
			full := filepath.Join(dir, parent)
			if err := os.Mkdir(full, 0o755); err != nil && !os.IsExist(err) {
				return err
			}
			if err := os.Chmod(full, 0o755); err != nil {
				return err
			}
		}
		switch {
		case e.link != "":
			if err := os.Symlink(e.link, at); err != nil {
				return err
			}
			continue
		case e.dir:
			if err := os.Mkdir(at, 0o755); err != nil {
				return err
			}
			if err := os.Chmod(at, 0o755); err != nil {
				return err
			}
			continue
		}
		content, err := e.read()
		if err != nil {
			return err
		}
		if err := os.WriteFile(at, content, e.mode); err != nil {
			return err
		}
		if err := os.Chmod(at, e.mode); err != nil {
			return err
		}
	}
	return nil
}

// parents are the folders above a path, the highest first.
func parents(name string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for i, c := range name {
			if c == '/' && !yield(name[:i]) {
				return
			}
		}
	}
}

// size is about what the package takes when it is installed, in KiB.
func (t tree) size() (int64, error) {
	var kib int64
	for _, e := range t {
		content, err := e.read()
		if err != nil {
			return 0, err
		}
		kib += (int64(len(content)) + 1023) / 1024
	}
	return kib, nil
}

// md5sums is what dpkg -V compares with; a configuration file is not listed.
func (t tree) md5sums(conffiles []string) ([]byte, error) {
	var out bytes.Buffer
	for _, name := range t.names() {
		e := t[name]
		if e.link != "" || e.dir || slices.Contains(conffiles, "/"+name) {
			continue
		}
		content, err := e.read()
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&out, "%x  %s\n", md5.Sum(content), name) //nolint:gosec // dpkg's format
	}
	return out.Bytes(), nil
}

// pack makes the package's file in the folder out and returns its name.
func (b *build) pack(ctx context.Context, out string) (string, error) {
	root := filepath.Join(b.work, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		return "", err
	}
	if err := os.Chmod(root, 0o755); err != nil {
		return "", err
	}
	if err := b.tree.stage(root); err != nil {
		return "", fmt.Errorf("cannot stage the package: %w", err)
	}
	// One time for all, folders last: what is made in them changes theirs.
	var names []string
	err := filepath.WalkDir(root, func(name string, _ fs.DirEntry, err error) error {
		names = append(names, name)
		return err
	})
	if err != nil {
		return "", err
	}
	slices.Reverse(names)
	at := fmt.Sprintf("--date=@%d", b.release.time.Unix())
	if _, err := output(ctx, b.work, nil, "touch", append([]string{"--no-dereference", at}, names...)...); err != nil {
		return "", err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return "", err
	}
	file := filepath.Join(b.work, "package.deb")
	epoch := fmt.Sprintf("SOURCE_DATE_EPOCH=%d", b.release.time.Unix())
	if _, err := output(ctx, b.work, []string{epoch}, "dpkg-deb", "--root-owner-group", "-Zxz", fmt.Sprintf("-z%d", b.level), "--threads-max=1", "--build", root, file); err != nil {
		return "", err
	}
	final := filepath.Join(out, fmt.Sprintf("liveupd_%s_%s.deb", b.release.debian(), b.arch))
	return final, copyFile(file, final)
}

// copyFile lays a file beside its place and moves it there: who reads the old one goes on with it.
func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	beside, err := os.CreateTemp(filepath.Dir(to), ".deb-")
	if err != nil {
		return err
	}
	defer os.Remove(beside.Name())
	if _, err := io.Copy(beside, in); err != nil {
		beside.Close()
		return err
	}
	if err := beside.Chmod(0o644); err != nil {
		beside.Close()
		return err
	}
	if err := beside.Close(); err != nil {
		return err
	}
	return os.Rename(beside.Name(), to)
}

// doc is where a package's documents lie.
func doc(name string) string {
	return path.Join("usr/share/doc/liveupd", strings.TrimPrefix(name, "/"))
}
