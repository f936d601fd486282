package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// aptScript is what apt by itself does in a root that does not run: units are not started there
// by either contender.
const aptScript = `
printf '#!/bin/sh\nexit 101\n' >usr/sbin/policy-rc.d; chmod 755 usr/sbin/policy-rc.d
mount -t proc proc proc; mount -t tmpfs tmpfs run; mkdir -p run/systemd/system
export DEBIAN_FRONTEND=noninteractive SYSTEMD_OFFLINE=1 LC_ALL=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
chroot . apt-get -q update
chroot . apt-get -q -y -o Dpkg::Options::=--force-confold -o Dpkg::Options::=--force-confdef dist-upgrade
rm usr/sbin/policy-rc.d
umount run proc
sync -f .
`

// packages measures a whole upgrade of a Debian root, all that was published since it was
// made, in one transaction, against apt-get dist-upgrade in a chroot: the same
// packages, from an archive on the same disk. Flushes and bytes are the disk's own counts.
func (b *bench) packages(roots string) error {
	debian, err := filepath.EvalSymlinks(filepath.Join(roots, "bookworm"))
	if err != nil {
		return fmt.Errorf("there is no Debian root to upgrade (run tests/setup/root.sh bookworm): %w", err)
	}
	base, root := filepath.Join(b.dir, "base"), filepath.Join(b.dir, "root")
	if _, err := tool("cp", "-a", debian, base); err != nil {
		return err
	}
	count, err := layArchive(base, debian)
	if err != nil {
		return err
	}
	contenders := []struct {
		name string
		run  func() (sample, error)
	}{
		{"liveupd apply", func() (sample, error) {
			// 4: the plan has a host action, which a root in a folder never does.
			return b.timed("sh", "-uc", `"$1" apply --root "$2" --full-upgrade --yes --json; rc=$?; [ $rc = 0 ] || [ $rc = 4 ]`, "sh", b.liveupd, root)
		}},
		{"apt-get dist-upgrade, sync -f", func() (sample, error) {
			return b.timed("unshare", "--mount", "sh", "-euc", `cd "$1"`+aptScript, "sh", root)
		}},
	}
	times, flushes, written := make([][]float64, len(contenders)), make([][]float64, len(contenders)), make([][]float64, len(contenders))
	var swap []float64
	var status [2]string
	for i := range b.runs {
		for n := range contenders {
			if err := os.RemoveAll(root); err != nil {
				return err
			}
			if _, err := tool("cp", "-a", base, root); err != nil {
				return err
			}
			if err := b.settle(); err != nil {
				return err
			}
			before, err := b.diskCounts()
			if err != nil {
				return err
			}
			s, err := contenders[n].run()
			if err != nil {
				return err
			}
			after, err := b.diskCounts()
			if err != nil {
				return err
			}
			if status[n], err = installedIn(root); err != nil {
				return err
			}
			times[n] = append(times[n], s.MS)
			flushes[n] = append(flushes[n], after.flushes-before.flushes)
			written[n] = append(written[n], after.writtenMB-before.writtenMB)
			if n == 0 {
				window, err := swapWindow(s.out)
				if err != nil {
					return err
				}
				swap = append(swap, window)
			}
		}
		if status[0] != status[1] {
			return errors.New("the contenders installed different packages")
		}
		fmt.Fprintf(os.Stderr, "bench: apt, run %d of %d\n", i+1, b.runs)
	}
	own := row{Samples: times[0]}.median()
	label := fmt.Sprintf("an upgrade of %d packages", count)
	for n, c := range contenders {
		r := row{What: label, Contender: c.name, Unit: "ms", Samples: times[n]}
		if n > 0 {
			r.Ratio = own / r.median()
		}
		b.rows = append(b.rows, r,
			row{What: "flushes of it", Contender: c.name, Unit: "", Samples: flushes[n]},
			row{What: "written by it", Contender: c.name, Unit: "MB", Samples: written[n]})
	}
	b.rows = append(b.rows, row{What: "the swap window of it", Contender: contenders[0].name, Unit: "ms", Samples: swap})
	return removeAll(base, root)
}

// layArchive makes an archive of a root's upgrades in a copy of it, its only one.
func layArchive(base, debian string) (int, error) {
	list, err := tool("tests/setup/upgrades.sh", debian)
	if err != nil {
		return 0, err
	}
	debs := strings.Fields(list)
	dir := filepath.Join(base, "srv/archive")
	for _, d := range []string{dir, filepath.Join(base, "var/lib/apt/lists/partial"), filepath.Join(base, "var/cache/apt/archives/partial")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return 0, err
		}
	}
	var packages bytes.Buffer
	for _, deb := range debs {
		if _, err := tool("cp", deb, dir); err != nil {
			return 0, err
		}
		control, err := exec.Command("dpkg-deb", "--field", deb).Output()
		if err != nil {
			return 0, fmt.Errorf("dpkg-deb --field %s: %w", deb, err)
		}
		content, err := os.ReadFile(deb)
		if err != nil {
			return 0, err
		}
		fmt.Fprintf(&packages, "%sFilename: ./%s\nSize: %d\nSHA256: %x\n\n", control, filepath.Base(deb), len(content), sha256.Sum256(content))
	}
	return len(debs), errors.Join(
		os.WriteFile(filepath.Join(dir, "Packages"), packages.Bytes(), 0o644),
		os.WriteFile(filepath.Join(base, "etc/apt/sources.list"), []byte("deb [trusted=yes] file:/srv/archive ./\n"), 0o644))
}

// installedIn lists a root's packages with their versions and states.
func installedIn(root string) (string, error) {
	return tool("dpkg-query", "--admindir="+filepath.Join(root, "var/lib/dpkg"), "-W", "-f", "${Package} ${Version} ${Status}\n")
}

type diskCount struct{ flushes, writtenMB float64 }

// diskCounts reads the disk's own counts: Documentation/block/stat.rst, fields 7 and 16.
func (b *bench) diskCounts() (diskCount, error) {
	device, err := tool("findmnt", "-no", "SOURCE", b.dir)
	if err != nil {
		return diskCount{}, err
	}
	text, err := os.ReadFile(filepath.Join("/sys/class/block", filepath.Base(device), "stat"))
	if err != nil {
		return diskCount{}, err
	}
	f := strings.Fields(string(text))
	if len(f) < 16 {
		return diskCount{}, fmt.Errorf("%s counts no flushes", device)
	}
	sectors, err := strconv.ParseFloat(f[6], 64)
	if err != nil {
		return diskCount{}, err
	}
	flushes, err := strconv.ParseFloat(f[15], 64)
	return diskCount{flushes: flushes, writtenMB: sectors * 512 / (1 << 20)}, err
}
