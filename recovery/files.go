package recovery

import (
	"embed"
	"io/fs"
	"os"
	"path"
	"strings"
)

//go:embed files
var embedded embed.FS

// Names of what is installed.
const (
	RecoverUnit = "liveupd-recover.service"
	finishUnit  = "liveupd-finish.service"
	// InitProgram is liveupd-recover by the name under which it is an init.
	InitProgram = "liveupd-init"
)

// Where the programs lie, relative to the root: /usr is a whole tree's to replace,
// /usr/local never is.
const (
	localLib    = "usr/local/lib/liveupd"
	packagedLib = "usr/lib/liveupd"
)

// item is one file of an installation.
type item struct {
	path string // relative to the root
	mode fs.FileMode
	// One of:
	text string // its content
	from string // the host's file that it is a copy of
	link string // the target of a symlink
	// initrd: the initrds hold it, and have to be made anew when it changes.
	initrd bool
}

// Programs are the host's files of the static programs.
type Programs struct{ Liveupd, Recover string }

// items lists what a root with this state is to have. What a package has laid
// below /usr is used, and not laid down again.
func (s *State) items(r *os.Root, p Programs) []item {
	lib, packaged := localLib, exists(r, packagedLib+"/liveupd-recover")
	var out []item
	if packaged {
		lib = packagedLib
	} else {
		out = append(out,
			item{path: lib + "/liveupd-recover", mode: 0o755, from: p.Recover, initrd: true},
			item{path: lib + "/liveupd", mode: 0o755, from: p.Liveupd},
			item{path: lib + "/" + InitProgram, link: "liveupd-recover"})
	}
	text := func(name string) string {
		b, err := embedded.ReadFile("files/" + name)
		if err != nil {
			panic(err) // it is embedded
		}
		return strings.ReplaceAll(string(b), "@LIB@", "/"+lib)
	}
	if exists(r, "usr/share/initramfs-tools/init") && !exists(r, "usr/share/initramfs-tools/hooks/liveupd") {
		out = append(out,
			item{path: "etc/initramfs-tools/hooks/liveupd", mode: 0o755, text: text("initramfs-hook"), initrd: true},
			item{path: "etc/initramfs-tools/scripts/local-bottom/liveupd", mode: 0o755, text: text("initramfs-bottom"), initrd: true})
	}
	const module = "usr/lib/dracut/modules.d/95liveupd"
	if exists(r, "usr/lib/dracut/dracut-functions.sh") && !(packaged && exists(r, module)) {
		out = append(out,
			item{path: module + "/module-setup.sh", mode: 0o755, text: text("dracut-setup"), initrd: true},
			item{path: module + "/liveupd-recover.sh", mode: 0o755, text: text("dracut-pre-pivot"), initrd: true})
	}
	if s.Systemd || s.Container {
		for _, u := range []struct{ name, file, target string }{
			{RecoverUnit, "recover.service", "sysinit.target"},
			{finishUnit, "finish.service", "multi-user.target"},
		} {
			unit := path.Join("etc/systemd/system", u.name)
			if packaged && exists(r, path.Join("usr/lib/systemd/system", u.name)) {
				unit = path.Join("usr/lib/systemd/system", u.name)
			} else {
				out = append(out, item{path: unit, mode: 0o644, text: text(u.file)})
			}
			out = append(out, item{path: path.Join("etc/systemd/system", u.target+".wants", u.name), link: "/" + unit})
		}
	}
	return out
}
