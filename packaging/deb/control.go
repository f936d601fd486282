package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const (
	maintainer = "The liveupd authors <liveupd@users.noreply.github.com>"
	homepage   = "https://github.com/liveupd/liveupd"
)

const description = `update a running server in place, and interrupt only what must be
 liveupd tells before anything changes which services an update will
 interrupt and why. It commits all of the update or none of it, restarts just
 what uses the changed files, and takes everything back, without a reboot, where
 a service does not come up.
 .
 It applies apt's upgrades, directory trees, archives and patches; it finds what
 runs code that is no longer on disk; and it can do all of that by itself at
 night, within the limits of a policy.
`

// conffiles are those of the package's files that are the administrator's to change.
var conffiles = []string{"/etc/liveupd/liveupd.toml"}

// configuration lays down the default configuration, all of it commented out.
func (b *build) configuration(context.Context) error {
	text, err := os.ReadFile(filepath.Join(b.source, "packaging/liveupd.toml"))
	if err != nil {
		return err
	}
	b.tree.add("etc/liveupd/liveupd.toml", 0o644, text)
	// What the documents tell an administrator to write lies in these.
	for _, name := range []string{"etc/liveupd/liveupd.toml.d", "etc/liveupd/policy.d"} {
		b.tree[name] = entry{dir: true}
	}
	overrides, err := os.ReadFile(filepath.Join(b.source, "packaging/lintian-overrides"))
	if err != nil {
		return err
	}
	b.tree.add("usr/share/lintian/overrides/liveupd", 0o644, overrides)
	return nil
}

// control writes what dpkg is told of the package; it comes last.
func (b *build) control(context.Context) error {
	sums, err := b.tree.md5sums(conffiles)
	if err != nil {
		return err
	}
	size, err := b.tree.size()
	if err != nil {
		return err
	}
	for _, name := range []string{"postinst", "prerm", "postrm"} {
		script, err := b.maintainerScript(name)
		if err != nil {
			return err
		}
		b.tree.add("DEBIAN/"+name, 0o755, script)
	}
	b.tree.add("DEBIAN/md5sums", 0o644, sums)
	b.tree.add("DEBIAN/conffiles", 0o644, []byte(strings.Join(conffiles, "\n")+"\n"))
	var c bytes.Buffer
	fmt.Fprintf(&c, "Package: liveupd\nVersion: %s\nArchitecture: %s\nMaintainer: %s\n", b.release.debian(), b.arch, maintainer)
	fmt.Fprintf(&c, "Installed-Size: %d\n", size)
	// Static programs: nothing is linked. findmnt, for the purge, is util-linux's, and
	// essential; so are dpkg, sh and init-system-helpers.
	c.WriteString("Recommends: systemd (>= 247)\nSuggests: initramfs-tools | dracut, zstd, xz-utils\n")
	fmt.Fprintf(&c, "Static-Built-Using: %s\n", b.builtUsing())
	fmt.Fprintf(&c, "Section: admin\nPriority: optional\nHomepage: %s\nDescription: %s", homepage, description)
	b.tree.add("DEBIAN/control", 0o644, c.Bytes())
	return nil
}
