package rootkind

import (
	"fmt"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// Kind is a kind of root that takes no update in place.
type Kind struct {
	Name    string // "ostree", "dm-verity"
	Because string // a clause: what the root is
	Instead string // what to use
}

// Error refuses the file system that is mounted at mount in the root.
func (k *Kind) Error(mount string) error {
	return change.WithHint(fmt.Errorf("cannot update %s in place: %s", mount, k.Because), k.Instead)
}

// Evidence is what one file system of a root shows of itself. The marks of
// whole systems (OSTree and those below it) are looked for on the root's own alone.
type Evidence struct {
	FSType  string
	Options string // the file system's own, as mountinfo has them

	Mappers        []string // device-mapper's UUIDs of its block device and of all below that
	DeviceReadOnly bool
	SubvolReadOnly bool // btrfs: property ro
	// Upper is the type of the file system that an overlay's upper layer lies on; "" where
	// that cannot be seen from here: an initrd may have mounted it.
	Upper string

	OSTree    bool
	NixOS     bool
	Guix      bool
	OSRelease string // ID of os-release
}

// images are file systems whose format cannot be written to.
var images = map[string]bool{"squashfs": true, "erofs": true, "cramfs": true, "romfs": true}

// media are those of optical disks.
var media = map[string]bool{"iso9660": true, "udf": true}

// Kind names the kind of root that the evidence shows; nil where an update in
// place can be tried.
func (e *Evidence) Kind() *Kind {
	switch {
	case e.OSTree:
		return &Kind{
			"ostree", "it is a deployment of ostree, which replaces whole trees and checks them out of its repository",
			"use rpm-ostree upgrade, bootc upgrade or ostree admin upgrade, and boot the new deployment",
		}
	case e.NixOS:
		return &Kind{
			"nixos", "it is NixOS, which builds the system in /nix/store and links it",
			"change the configuration and use nixos-rebuild switch",
		}
	case e.Guix:
		return &Kind{
			"guix", "it is a Guix System, which builds the system in /gnu/store and links it",
			"change the configuration and use guix system reconfigure",
		}
	case e.OSRelease == "ubuntu-core":
		return &Kind{
			"ubuntu-core", "it is Ubuntu Core, whose root is a snap and is replaced as one",
			"use snap refresh",
		}
	}
	for _, uuid := range e.Mappers {
		if strings.HasPrefix(uuid, "CRYPT-VERITY-") {
			return &Kind{
				"dm-verity", "dm-verity protects its block device: a changed block would be refused by the kernel",
				"write a new image to the other partition and boot it, with systemd-sysupdate, RAUC or the tool that made this one",
			}
		}
	}
	switch {
	case images[e.FSType]:
		return &Kind{
			e.FSType, "it is an image (" + e.FSType + "), which by its format is never written to",
			"make a new image and boot it, with systemd-sysupdate, RAUC or the tool that made this one; liveupd updates a tree that an image is made from with --root DIR",
		}
	case media[e.FSType]:
		return &Kind{
			"medium", "it is a read-only medium (" + e.FSType + ")",
			"install the system on a disk, and update that",
		}
	case e.FSType == "overlay" && !hasOption(e.Options, "upperdir="):
		return &Kind{
			"composefs", "it is an overlay of read-only layers without one that takes writes (composefs, a live medium)",
			"use the tool that deploys the layers: bootc upgrade, rpm-ostree upgrade or ostree admin upgrade",
		}
	case e.FSType == "overlay" && (hasOption(e.Options, "volatile") || hasOption(e.Options, "fsync=volatile")):
		return &Kind{
			"volatile", "it is an overlay that is mounted with volatile: nothing that is written there is ever made durable, so no commit can be",
			"mount it without volatile, or make a new container from a new image",
		}
	case e.FSType == "fuse" || e.FSType == "fuseblk" || strings.HasPrefix(e.FSType, "fuse."):
		// fuse_sync_fs asks the server for nothing unless that is virtiofs's.
		return &Kind{
			"fuse", "a program serves it (" + e.FSType + "), and the kernel does not ask that to make durable what is synced",
			"mount it by a file system of the kernel's, or update it where it really lies",
		}
	case e.SubvolReadOnly:
		return &Kind{
			"read-only subvolume", "it is a btrfs subvolume with the property ro=true: a snapshot that is to stay as it is",
			"use what made it (transactional-update, steamos-update); where nothing did: btrfs property set -ts PATH ro false",
		}
	case e.DeviceReadOnly:
		return &Kind{
			"read-only device", "its block device refuses writes",
			"take the write protection off (blockdev --setrw, or the switch of the card), or make a new image",
		}
	}
	return nil
}

// Fleeting says why what is written there is gone with the next boot; "" where it is
// kept. A live medium can be updated: until then.
func (e *Evidence) Fleeting() string {
	switch {
	case memory[e.FSType]:
		return "it lies in memory (" + e.FSType + ")"
	case memory[e.Upper]:
		return "it is an overlay whose upper layer lies in memory (" + e.Upper + "), as that of a live medium"
	}
	return ""
}

// memory are file systems that keep nothing over a boot.
var memory = map[string]bool{"tmpfs": true, "ramfs": true, "rootfs": true}

// hasOption tells whether a comma-separated list has an option; want ends in "="
// for one with any value.
func hasOption(list, want string) bool {
	return slices.ContainsFunc(strings.Split(list, ","), func(opt string) bool {
		return opt == want || strings.HasSuffix(want, "=") && strings.HasPrefix(opt, want)
	})
}
