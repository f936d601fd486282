// Package neighbours knows what else updates a machine, or looks after what updates do:
// unattended-upgrades, apt's own timers, needrestart, etckeeper and snapper; and what
// liveupd may lay beside them so that all of them fit together.
//
//  1. Nothing is switched off without consent, and apt itself never is. By default
//     everybody goes on: who comes second finds apt's locks taken.
//  2. What is changed is a file of our own in a folder for drop-ins, never somebody's own
//     file. It is shown before, recorded (package laid), and taken away as it was laid.
//  3. unattended-upgrades stands down just while liveupd's unattended mode is on: a
//     machine on which neither runs would get no security update, and nobody would see it.
package neighbours

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/laid"
)

// RecordFile lists what was laid with consent.
const RecordFile = "var/lib/liveupd/together.json"

// HooksDir holds programs that run before and after each update.
const HooksDir = "etc/liveupd/hooks.d"

const (
	dropIn  = "etc/systemd/system/apt-daily-upgrade.service.d/50-liveupd.conf"
	aptConf = "etc/apt/apt.conf.d/99liveupd"
)

//go:embed files
var embedded embed.FS

func text(name string) string {
	b, err := embedded.ReadFile("files/" + name)
	if err != nil {
		panic(err) // it is embedded
	}
	return string(b)
}

// Beside is what was found beside liveupd, and the files that would be laid for it.
type Beside struct {
	Found []change.Neighbour
	Files []laid.File
	why   map[string]string // by path: whose file it is
}

// Options say how liveupd itself is set up.
type Options struct {
	Unattended bool   // its own unattended mode is on
	Program    string // where the root has liveupd
}

// Inspect looks at a root. It writes nothing.
func Inspect(r *os.Root, o Options) (*Beside, error) {
	b := &Beside{why: map[string]string{}}
	for _, look := range []func(*os.Root, Options) error{b.unattendedUpgrades, b.aptDaily, b.needrestart, b.etckeeper, b.snapper} {
		if err := look(r, o); err != nil {
			return nil, fmt.Errorf("cannot look for what else updates this root: %w", err)
		}
	}
	return b, nil
}

// Owner says for whom a file is laid; "" for one that is none of ours.
func (b *Beside) Owner(file string) string { return b.why[strings.TrimPrefix(file, "/")] }

// Text is what a file would hold.
func (b *Beside) Text(file string) string {
	for _, f := range b.Files {
		if "/"+f.Path == file {
			return f.Text
		}
	}
	return ""
}

// Settled are the files that may be laid without asking again: those that were laid with
// consent, and the one with which unattended-upgrades stands down or comes back.
func (b *Beside) Settled(consented func(file string) bool) []laid.File {
	return slices.DeleteFunc(slices.Clone(b.Files), func(f laid.File) bool { return f.Path != aptConf && !consented(f.Path) })
}

func (b *Beside) add(n change.Neighbour, files ...laid.File) {
	b.Found = append(b.Found, n)
	for _, f := range files {
		b.why[f.Path] = n.Name
	}
	b.Files = append(b.Files, files...)
}

func exists(r *os.Root, names ...string) bool {
	return slices.ContainsFunc(names, func(name string) bool {
		_, err := r.Lstat(name)
		return err == nil
	})
}

// unitEnabled tells whether a timer is started at boot.
func unitEnabled(r *os.Root, unit string) string {
	if target, err := r.Readlink("etc/systemd/system/" + unit); err == nil && target == "/dev/null" {
		return "masked"
	}
	if exists(r, "etc/systemd/system/timers.target.wants/"+unit, "usr/lib/systemd/system/timers.target.wants/"+unit) {
		return "enabled"
	}
	return "disabled"
}

func (b *Beside) unattendedUpgrades(r *os.Root, o Options) error {
	if !exists(r, "usr/bin/unattended-upgrade") {
		return nil
	}
	n := change.Neighbour{Name: "unattended-upgrades", Now: "switched off by apt's configuration"}
	value, err := aptSetting(r, "APT::Periodic::Unattended-Upgrade", aptConf)
	if err != nil {
		return err
	}
	if value != "" && value != "0" {
		n.Now = "installs upgrades, by apt-daily-upgrade.timer"
	}
	n.Keeps = "goes on beside liveupd: whoever comes second finds apt's lock taken, and leaves it for the next time"
	n.Change = "stands down while liveupd's unattended mode is on; that is off now ([unattended] enabled = true switches it on)"
	files := []laid.File{{Path: dropIn, Mode: 0o644, Text: strings.ReplaceAll(text("apt-daily-upgrade.conf"), "@LIVEUPD@", o.Program)}}
	if o.Unattended {
		n.Change = "stands down: liveupd's unattended mode is on; it comes back when that is switched off"
		files = append(files, laid.File{Path: aptConf, Mode: 0o644, Text: text("apt.conf")})
	}
	b.add(n, files...)
	return nil
}

func (b *Beside) aptDaily(r *os.Root, _ Options) error {
	const unit = "usr/lib/systemd/system/apt-daily.timer"
	if !exists(r, unit) {
		return nil
	}
	b.add(change.Neighbour{
		Name: "apt's timers", Now: fmt.Sprintf("apt-daily.timer is %s, apt-daily-upgrade.timer is %s", unitEnabled(r, "apt-daily.timer"), unitEnabled(r, "apt-daily-upgrade.timer")),
		Keeps: "go on: lists are refreshed and old archives cleaned up as before; locks are respected in both directions",
	})
	return nil
}

func (b *Beside) needrestart(r *os.Root, _ Options) error {
	if !exists(r, "usr/sbin/needrestart") {
		return nil
	}
	n := change.Neighbour{
		Name: "needrestart", Now: "no hook of apt calls it",
		Keeps: "stays for apt by hand; liveupd's own runs suspend it (NEEDRESTART_SUSPEND), for they restart what they have to by themselves",
	}
	if exists(r, "etc/apt/apt.conf.d/99needrestart") {
		n.Now = "runs after each apt, by its hook"
	}
	b.add(n)
	return nil
}

func (b *Beside) etckeeper(r *os.Root, _ Options) error {
	if !exists(r, "usr/bin/etckeeper") {
		return nil
	}
	n := change.Neighbour{
		Name: "etckeeper", Now: "/etc is in no repository",
		Keeps: "commits around apt by hand, and once a day what liveupd has changed",
	}
	if !exists(r, "etc/.git", "etc/.hg", "etc/.bzr", "etc/_darcs") {
		b.add(n)
		return nil
	}
	n.Now = "commits /etc before and after apt"
	n.Change = "commits /etc before and after each update by liveupd, too"
	b.add(n, laid.File{Path: HooksDir + "/50-etckeeper", Mode: 0o755, Text: text("etckeeper")})
	return nil
}

func (b *Beside) snapper(r *os.Root, _ Options) error {
	if !exists(r, "usr/bin/snapper") {
		return nil
	}
	n := change.Neighbour{Name: "snapper", Now: "no configuration for the root", Keeps: "makes its snapshots as before"}
	if !exists(r, "etc/snapper/configs/root") {
		b.add(n)
		return nil
	}
	n.Now = "makes snapshots around apt, and by the clock"
	n.Change = "makes a snapshot before and one after each update by liveupd, too"
	b.add(n, laid.File{Path: HooksDir + "/40-snapper", Mode: 0o755, Text: text("snapper")})
	return nil
}

var aptComment = regexp.MustCompile(`(?s)/\*.*?\*/|(?m)(//|#).*$`)

// aptSetting reads one setting as apt would find it, without running apt of a root that may
// not be this machine's: the plain form, in the order of the files, the last one counts.
func aptSetting(r *os.Root, name, without string) (string, error) {
	entries, err := fs.ReadDir(r.FS(), "etc/apt/apt.conf.d")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	files := make([]string, 0, len(entries)+1)
	for _, e := range entries {
		if ext := path.Ext(e.Name()); ext == "" || ext == ".conf" {
			files = append(files, "etc/apt/apt.conf.d/"+e.Name())
		}
	}
	files = append(files, "etc/apt/apt.conf")
	setting := regexp.MustCompile(`(?i)` + regexp.QuoteMeta(name) + `\s+"([^"]*)"\s*;`)
	value := ""
	for _, file := range files {
		if file == without {
			continue
		}
		content, err := r.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		for _, m := range setting.FindAllSubmatch(aptComment.ReplaceAll(content, nil), -1) {
			value = string(m[1])
		}
	}
	return value, nil
}
