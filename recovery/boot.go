package recovery

import (
	"bufio"
	"debug/pe"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/journal"
)

// bootable is a kernel with what it is booted with.
type bootable struct {
	kernel string
	initrd []string // the loader concatenates them; empty: none
	whole  bool     // kernel is a unified kernel image that holds its initrd
}

// partitions are where a boot partition can be mounted.
var partitions = []string{"boot", "boot/efi", "efi"}

// kernels lists what a root can be booted with: the kernels in /boot with the
// initrds that are named after them, boot loader entries (the UAPI group's
// specification, type 1) and unified kernel images (type 2).
func kernels(root *os.Root) ([]bootable, error) {
	var out []bootable
	seen := map[string]bool{}
	add := func(b bootable) {
		key := b.kernel + " " + strings.Join(b.initrd, " ")
		if !seen[key] {
			seen[key] = true
			out = append(out, b)
		}
	}
	names, err := list(root, "boot")
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		var version string
		switch {
		case strings.HasPrefix(name, "vmlinuz-"):
			version = strings.TrimPrefix(name, "vmlinuz-")
		case strings.HasPrefix(name, "vmlinux-"):
			version = strings.TrimPrefix(name, "vmlinux-")
		default:
			continue
		}
		b := bootable{kernel: "boot/" + name}
		for _, initrd := range []string{"initrd.img-" + version, "initramfs-" + version + ".img", "initrd-" + version} {
			if slices.Contains(names, initrd) {
				b.initrd = []string{"boot/" + initrd}
				break
			}
		}
		add(b)
	}
	for _, part := range partitions {
		entries, err := list(root, part+"/loader/entries")
		if err != nil {
			return nil, err
		}
		for _, name := range entries {
			if !strings.HasSuffix(name, ".conf") {
				continue
			}
			b, err := loaderEntry(root, part, path.Join(part, "loader/entries", name))
			if err != nil {
				return nil, err
			}
			if b.kernel != "" {
				add(b)
			}
		}
		images, err := list(root, part+"/EFI/Linux")
		if err != nil {
			return nil, err
		}
		for _, name := range images {
			if strings.HasSuffix(strings.ToLower(name), ".efi") {
				add(bootable{kernel: path.Join(part, "EFI/Linux", name), whole: true})
			}
		}
	}
	return out, nil
}

// list gives the names in a folder, none where there is no such folder.
func list(root *os.Root, dir string) ([]string, error) {
	entries, err := fs.ReadDir(root.FS(), dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot look for kernels: %w", err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

// loaderEntry reads what an entry boots. Paths in it begin at its partition, which
// may be the root's own /boot or the root file system itself.
func loaderEntry(root *os.Root, part, name string) (bootable, error) {
	var b bootable
	f, err := root.Open(name)
	if err != nil {
		return b, fmt.Errorf("cannot read a boot entry: %w", err)
	}
	defer f.Close()
	at := func(p string) string {
		p = strings.TrimPrefix(path.Clean("/"+p), "/")
		for _, full := range []string{path.Join(part, p), p} {
			if _, err := root.Stat(full); err == nil {
				return full
			}
		}
		return path.Join(part, p)
	}
	for sc := bufio.NewScanner(io.LimitReader(f, 1<<20)); sc.Scan(); {
		key, value, _ := strings.Cut(strings.TrimSpace(sc.Text()), " ")
		switch value = strings.TrimSpace(value); key {
		case "linux":
			b.kernel = at(value)
		case "initrd":
			b.initrd = append(b.initrd, at(value))
		case "efi", "uki":
			if strings.HasSuffix(strings.ToLower(value), ".efi") {
				b.kernel, b.whole = at(value), true
			}
		}
	}
	return b, nil
}

// judge tells whether a kernel boots with a recovery that reads our journal.
func judge(root *os.Root, b bootable, cache *verdicts) change.BootKernel {
	k := change.BootKernel{Kernel: "/" + b.kernel, Recovers: "none"}
	if b.whole {
		k.Initrd = k.Kernel
		k.Recovers, k.Detail = cache.judge(root, b.kernel, func(f *os.File) (contents, error) { return readUnified(f) })
		return k
	}
	for _, initrd := range b.initrd {
		if k.Recovers == "yes" {
			break
		}
		k.Initrd = "/" + initrd
		k.Recovers, k.Detail = cache.judge(root, initrd, func(f *os.File) (contents, error) { return readInitrd(f) })
	}
	return k
}

func readUnified(f *os.File) (contents, error) {
	image, err := pe.NewFile(f)
	if err != nil {
		return contents{}, err
	}
	section := image.Section(".initrd")
	if section == nil {
		return contents{}, nil
	}
	return readInitrd(section.Open())
}

// verdict turns what an initrd holds into a word.
func verdict(c contents, err error) (recovers, detail string) {
	switch {
	case c.complete() && slices.Contains(c.Versions, journal.Version):
		return "yes", ""
	case c.complete():
		return "old", fmt.Sprintf("it reads journals of version %v, and this program writes version %d", c.Versions, journal.Version)
	case err != nil:
		return "unknown", err.Error()
	case c.Program || c.Hook:
		return "no", "it holds a part of liveupd-recover only"
	}
	return "no", ""
}
