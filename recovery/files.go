package recovery

import (
	"embed"
	"os"
	"path"
	"strings"

	"github.com/liveupd/liveupd/internal/laid"
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
	localLib = "usr/local/lib/liveupd"
	// LibDir is where a package has the programs that are not for persons.
	LibDir = "usr/lib/liveupd"
)

const dracutModule = "usr/lib/dracut/modules.d/95liveupd"

// item is one file of an installation.
type item struct {
	laid.File
	// initrd: the initrds hold it, and have to be made anew when it changes.
	initrd bool
}

// Programs are the host's files of the static programs.
type Programs struct{ Liveupd, Recover string }

func embeddedText(name string) string {
	b, err := embedded.ReadFile("files/" + name)
	if err != nil {
		panic(err) // it is embedded
	}
	return string(b)
}

// items lists what a root with this state is to have. What a package has laid
// below /usr is used, and not laid down again.
func (s *State) items(r *os.Root, p Programs) []item {
	lib, packaged := localLib, exists(r, LibDir+"/liveupd-recover")
	var out []item
	if packaged {
		lib = LibDir
	} else {
		out = append(out,
			item{File: laid.File{Path: lib + "/liveupd-recover", Mode: 0o755, From: p.Recover}, initrd: true},
			item{File: laid.File{Path: lib + "/liveupd", Mode: 0o755, From: p.Liveupd}},
			item{File: laid.File{Path: lib + "/" + InitProgram, Link: "liveupd-recover"}})
	}
	text := func(name string) string { return strings.ReplaceAll(embeddedText(name), "@LIB@", "/"+lib) }
	if exists(r, "usr/share/initramfs-tools/init") && !exists(r, "usr/share/initramfs-tools/hooks/liveupd") {
		out = append(out,
			item{File: laid.File{Path: "etc/initramfs-tools/hooks/liveupd", Mode: 0o755, Text: text("initramfs-hook")}, initrd: true},
			item{File: laid.File{Path: "etc/initramfs-tools/scripts/local-bottom/liveupd", Mode: 0o755, Text: text("initramfs-bottom")}, initrd: true})
	}
	if exists(r, "usr/lib/dracut/dracut-functions.sh") && !(packaged && exists(r, dracutModule)) {
		out = append(out,
			item{File: laid.File{Path: dracutModule + "/module-setup.sh", Mode: 0o755, Text: text("dracut-setup")}, initrd: true},
			item{File: laid.File{Path: dracutModule + "/liveupd-recover.sh", Mode: 0o755, Text: text("dracut-pre-pivot")}, initrd: true})
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
				out = append(out, item{File: laid.File{Path: unit, Mode: 0o644, Text: text(u.file)}})
			}
			out = append(out, item{File: laid.File{Path: path.Join("etc/systemd/system", u.target+".wants", u.name), Link: "/" + unit}})
		}
	}
	return out
}

// Packaged lists what a package ships of the recovery at boot beside the programs, which
// lie in LibDir; liveupd itself is in /usr/bin there. Setup uses these where they are.
func Packaged() []laid.File {
	text := func(name string) string {
		s := embeddedText(name)
		s = strings.ReplaceAll(s, "@LIB@/liveupd ", "/usr/bin/liveupd ")
		s = strings.ReplaceAll(s, "@LIB@", "/"+LibDir)
		return strings.ReplaceAll(s, "# Written by: liveupd setup. To take it away: liveupd setup --remove\n", "# From the package liveupd.\n")
	}
	const units, tools = "usr/lib/systemd/system/", "usr/share/initramfs-tools/"
	return []laid.File{
		{Path: LibDir + "/" + InitProgram, Link: "liveupd-recover"},
		{Path: tools + "hooks/liveupd", Mode: 0o755, Text: text("initramfs-hook")},
		{Path: tools + "scripts/local-bottom/liveupd", Mode: 0o755, Text: text("initramfs-bottom")},
		{Path: dracutModule + "/module-setup.sh", Mode: 0o755, Text: text("dracut-setup")},
		{Path: dracutModule + "/liveupd-recover.sh", Mode: 0o755, Text: text("dracut-pre-pivot")},
		{Path: units + RecoverUnit, Mode: 0o644, Text: text("recover.service")},
		{Path: units + finishUnit, Mode: 0o644, Text: text("finish.service")},
	}
}
