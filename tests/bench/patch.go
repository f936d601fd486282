package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// packTree packs a tree as whole-tar contenders get it.
const packTree = `tar -C "$1" --sort=name --xattrs --acls --numeric-owner -cf "$2" .`

// patches measures a patch between two states of one release, before and after all that was published
// since, against zstd --patch-from and xdelta3 of the two whole tar archives: bytes, time and memory, to make and
// to apply. Those give a tar archive, which would still have to be compared and put into the root; and they
// hold what no update would touch. Each is run once: the bytes are the same each time.
func (b *bench) patches(roots string) error {
	debian, err := filepath.EvalSymlinks(filepath.Join(roots, "bookworm"))
	if err != nil {
		return fmt.Errorf("there is no Debian root to upgrade (run tests/setup/root.sh bookworm): %w", err)
	}
	at := func(name string) string { return filepath.Join(b.dir, name) }
	old, upgraded, root := at("old"), at("new"), at("root")
	oldTar, newTar, patch := at("old.tar"), at("new.tar"), at("liveupd.patch")
	if _, err := tool("cp", "-a", debian, old); err != nil {
		return err
	}
	count, err := layArchive(old, debian)
	if err != nil {
		return err
	}
	if _, err := tool("cp", "-a", old, upgraded); err != nil {
		return err
	}
	if _, err := b.timed("unshare", "--mount", "sh", "-euc", `cd "$1"`+aptScript, "sh", upgraded); err != nil {
		return err
	}
	for _, dir := range []string{old, upgraded} {
		// What apt has downloaded and logged is no part of a release.
		if _, err := tool("sh", "-euc", `cd "$1" && rm -rf srv/archive var/lib/apt/lists/* var/cache/apt/* var/log/*`, "sh", dir); err != nil {
			return err
		}
	}
	for dir, archive := range map[string]string{old: oldTar, upgraded: newTar} {
		if _, err := tool("sh", "-euc", packTree, "sh", dir, archive); err != nil {
			return err
		}
	}
	contenders := []struct {
		name        string
		file        string
		make, apply []string
	}{
		{
			"liveupd diff, apply", patch,
			[]string{b.liveupd, "diff", "-o", patch, old, upgraded},
			[]string{b.liveupd, "apply", "--root", root, "--source", "patch:" + patch, "--allow-unsigned", "--allow-removals", "--yes", "--json"},
		},
		{
			"zstd -19 --long=31 --patch-from of the tar archives", at("zstd.patch"),
			[]string{"zstd", "-q", "-19", "--long=31", "--single-thread", "--patch-from=" + oldTar, newTar, "-o", at("zstd.patch")},
			[]string{"zstd", "-q", "-d", "--long=31", "--patch-from=" + oldTar, at("zstd.patch"), "-o", at("again.tar")},
		},
		{
			"xdelta3 -9 -S lzma of the tar archives", at("xdelta.patch"),
			[]string{"xdelta3", "-q", "-9", "-S", "lzma", "-B", "536870912", "-e", "-s", oldTar, newTar, at("xdelta.patch")},
			[]string{"xdelta3", "-q", "-B", "536870912", "-d", "-s", oldTar, at("xdelta.patch"), at("again.tar")},
		},
	}
	label := fmt.Sprintf("a patch for %d upgraded packages of Debian", count)
	var own [3]float64
	for n, c := range contenders {
		if _, err := tool("cp", "-a", old, root); err != nil {
			return err
		}
		if err := b.settle(); err != nil {
			return err
		}
		made, err := b.timed(c.make[0], c.make[1:]...)
		if err != nil {
			return err
		}
		st, err := os.Stat(c.file)
		if err != nil {
			return err
		}
		applied, err := b.timed(c.apply[0], c.apply[1:]...)
		if err != nil {
			return err
		}
		if n == 0 {
			err = sameFiles(filepath.Join(upgraded, "usr"), filepath.Join(root, "usr"))
		} else {
			_, err = tool("cmp", newTar, at("again.tar"))
		}
		if err != nil {
			return fmt.Errorf("%s did not do its work: %w", c.name, err)
		}
		for i, r := range []row{
			{What: label, Unit: "kB", Samples: []float64{float64(st.Size()) / 1000}},
			{What: "making it", Unit: "ms", Samples: []float64{made.MS}},
			{What: "applying it", Unit: "ms", Samples: []float64{applied.MS}},
			{What: "peak memory of making it", Unit: "MB", Samples: []float64{made.PeakMB}},
			{What: "peak memory of applying it", Unit: "MB", Samples: []float64{applied.PeakMB}},
		} {
			r.Contender = c.name
			if i < len(own) && n == 0 {
				own[i] = r.median()
			} else if i < len(own) {
				r.Ratio = own[i] / r.median()
			}
			b.rows = append(b.rows, r)
		}
		fmt.Fprintf(os.Stderr, "bench: patch, %s\n", c.name)
		if err := errors.Join(os.RemoveAll(root), os.RemoveAll(at("again.tar"))); err != nil {
			return err
		}
	}
	return removeAll(old, upgraded, oldTar, newTar, patch, at("zstd.patch"), at("xdelta.patch"))
}
