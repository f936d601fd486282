package vm

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Contents is what an initramfs of Initramfs holds beside empty folders to mount on.
type Contents struct {
	// Init is the host's path of the program that becomes /init; it must be static.
	Init string
	// Programs are put into /bin: host paths.
	Programs []string
	// Files are further files by their path, with the mode 0644.
	Files map[string][]byte
	// Modules are the kernel's modules by name. They and what they need lie, unpacked, in
	// /modules, and /modules/order names the files in the order in which they are to be loaded.
	// What the kernel has built in is passed over.
	Modules []string
	// Kernel is the cached root that they are from; Trixie where it is empty.
	Kernel string
}

// Initramfs makes an initramfs without any distribution in it: it boots in two or three
// seconds. It gives the path of a file that goes with the test.
func Initramfs(t testing.TB, c Contents) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "initramfs")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	w := bufio.NewWriter(f)
	err = c.write(t, &archive{w: w})
	if err == nil {
		err = w.Flush()
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatalf("cannot make an initramfs: %v", err)
	}
	return name
}

func (c Contents) write(t testing.TB, a *archive) error {
	t.Helper()
	files := map[string]entry{}
	for _, dir := range []string{"bin", "dev", "modules", "mnt", "proc", "run", "sys", "tmp"} {
		files[dir] = entry{mode: fs.ModeDir | 0o755}
	}
	program := func(at, from string) error {
		b, err := os.ReadFile(from)
		files[at] = entry{0o755, b}
		return err
	}
	if err := program("init", c.Init); err != nil {
		return err
	}
	for _, p := range c.Programs {
		if err := program("bin/"+filepath.Base(p), p); err != nil {
			return err
		}
	}
	for at, content := range c.Files {
		at = strings.TrimPrefix(path.Clean("/"+at), "/")
		files[at] = entry{0o644, content}
		for dir := path.Dir(at); dir != "."; dir = path.Dir(dir) {
			files[dir] = entry{mode: fs.ModeDir | 0o755}
		}
	}
	if c.Kernel == "" {
		c.Kernel = Trixie
	}
	_, dir := KernelOf(t, c.Kernel)
	modules, err := resolve(dir, c.Modules)
	if err != nil {
		return err
	}
	var order strings.Builder
	for _, m := range modules {
		b, err := unpackModule(filepath.Join(dir, m))
		if err != nil {
			return err
		}
		base := strings.TrimSuffix(path.Base(m), ".xz")
		files["modules/"+base] = entry{0o644, b}
		fmt.Fprintln(&order, "/modules/"+base)
	}
	files["modules/order"] = entry{0o644, []byte(order.String())}
	// The kernel opens the first process's descriptors before anything is mounted.
	a.add("dev", entry{mode: fs.ModeDir | 0o755})
	a.add("dev/console", entry{mode: fs.ModeDevice | fs.ModeCharDevice | 0o600})
	delete(files, "dev")
	for _, at := range slices.Sorted(maps.Keys(files)) {
		a.add(at, files[at])
	}
	return a.end()
}

// resolve gives the files of modules and of what they need, in loading order.
func resolve(dir string, names []string) ([]string, error) {
	deps, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, err
	}
	builtin, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	called := func(file string) string {
		base, _, _ := strings.Cut(path.Base(file), ".ko")
		return strings.ReplaceAll(base, "-", "_")
	}
	need, files, inKernel := map[string][]string{}, map[string]string{}, map[string]bool{}
	for line := range strings.Lines(string(deps)) {
		file, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		files[called(file)], need[file] = file, strings.Fields(rest)
	}
	for line := range strings.Lines(string(builtin)) {
		inKernel[called(strings.TrimSpace(line))] = true
	}
	var out []string
	add := func(file string) {
		if !slices.Contains(out, file) {
			out = append(out, file)
		}
	}
	for _, name := range names {
		name = strings.ReplaceAll(name, "-", "_")
		file, ok := files[name]
		switch {
		case ok:
			// depmod lists what is needed with what it needs itself behind it.
			for _, dep := range slices.Backward(need[file]) {
				add(dep)
			}
			add(file)
		case !inKernel[name]:
			return nil, fmt.Errorf("the kernel in %s has no module %s", dir, name)
		}
	}
	return out, nil
}

func unpackModule(file string) ([]byte, error) {
	if !strings.HasSuffix(file, ".xz") {
		return os.ReadFile(file)
	}
	cmd := exec.Command("xz", "--decompress", "--stdout", file)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	b, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("cannot unpack %s: %w: %s", file, err, strings.TrimSpace(stderr.String()))
	}
	return b, nil
}

type entry struct {
	mode    fs.FileMode
	content []byte
}

// archive writes the "new ASCII" cpio format (cpio(5), Documentation/driver-api/early-userspace/buffer-format.rst
// in the kernel): a header of 6 + 13*8 characters, the name, the content, each padded to four bytes.
type archive struct {
	w     io.Writer
	inode int
	err   error
}

func (a *archive) add(name string, e entry) {
	const dir, regular, char = 0o040000, 0o100000, 0o020000
	mode, major, minor := uint32(e.mode.Perm()), 0, 0
	switch {
	case e.mode.IsDir():
		mode |= dir
	case e.mode&fs.ModeCharDevice != 0:
		mode, major, minor = mode|char, 5, 1 // /dev/console
	default:
		mode |= regular
	}
	a.inode++
	a.header(name, a.inode, mode, len(e.content), major, minor)
	a.put(e.content)
}

func (a *archive) header(name string, inode int, mode uint32, size, major, minor int) {
	h := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", inode, mode, 0, 0, 1, 0, size, 0, 0, major, minor, len(name)+1, 0)
	a.put(append([]byte(h+name), 0))
}

// put writes b and pads it. The header and the name are padded together: 110 bytes and the name.
func (a *archive) put(b []byte) {
	if a.err == nil {
		_, a.err = a.w.Write(append(slices.Clip(b), make([]byte, (4-len(b)%4)%4)...))
	}
}

func (a *archive) end() error {
	a.header("TRAILER!!!", 0, 0, 0, 0, 0)
	return a.err
}
