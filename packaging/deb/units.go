package main

import (
	"bufio"
	"bytes"
	"context"
	"embed"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/recovery"
)

const unitDir = "usr/lib/systemd/system"

// units lays down what recovers at boot, and the units of packaging/systemd.
func (b *build) units(context.Context) error {
	for _, f := range recovery.Packaged() {
		if f.Link != "" {
			b.tree[f.Path] = entry{link: f.Link}
			continue
		}
		b.tree.add(f.Path, f.Mode, []byte(f.Text))
	}
	dir := filepath.Join(b.source, "packaging/systemd")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		b.own = append(b.own, e.Name())
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		b.tree.add(path.Join(unitDir, e.Name()), 0o644, text)
	}
	return nil
}

// enabled are the units that say by what they are to be enabled.
func (b *build) enabled() []string {
	var out []string
	for _, name := range b.tree.names() {
		if path.Dir(name) != unitDir {
			continue
		}
		for sc := bufio.NewScanner(bytes.NewReader(b.tree[name].content)); sc.Scan(); {
			if strings.TrimSpace(sc.Text()) == "[Install]" {
				out = append(out, path.Base(name))
			}
		}
	}
	return out
}

//go:embed scripts
var scripts embed.FS

// initrdFiles are those whose change needs new initrds.
func (b *build) initrdFiles() []string {
	var out []string
	for _, name := range b.tree.names() {
		if strings.HasPrefix(name, "usr/share/initramfs-tools/") || strings.HasPrefix(name, "usr/lib/dracut/") || name == recovery.LibDir+"/liveupd-recover" {
			out = append(out, "/"+name)
		}
	}
	return out
}

// maintainerScript fills in one of scripts.
func (b *build) maintainerScript(name string) ([]byte, error) {
	text, err := scripts.ReadFile("scripts/" + name)
	if err != nil {
		return nil, err
	}
	enabled := b.enabled()
	// What recovers at boot is never started or stopped on a machine that runs.
	pick := func(is func(unit string) bool) string {
		return strings.Join(slices.DeleteFunc(slices.Clone(b.own), func(u string) bool { return !is(u) }), " ")
	}
	waiting := func(u string) bool { return path.Ext(u) != ".service" && slices.Contains(enabled, u) }
	runs := func(u string) bool { return path.Ext(u) == ".service" && !slices.Contains(enabled, u) }
	s := strings.NewReplacer(
		"@UNITS@", strings.Join(enabled, " "), "@TIMERS@", pick(waiting), "@RUNS@", pick(runs),
		"@STOPPED@", pick(func(string) bool { return true }),
		"@INITRD_FILES@", strings.Join(b.initrdFiles(), " "),
	).Replace(string(text))
	if i := strings.IndexByte(s, '@'); i >= 0 && len(s) > i+1 && s[i+1] >= 'A' && s[i+1] <= 'Z' {
		return nil, fmt.Errorf("the script %s has a place that nothing fills: %.20s", name, s[i:])
	}
	return []byte(s), nil
}
