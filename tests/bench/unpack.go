package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// compressions are the programs that make an archive of each kind; "" for none.
var compressions = []struct{ name, suffix, program string }{
	{"plain", ".tar", "cat"},
	{"gzip", ".tar.gz", "gzip -6"},
	{"zstd", ".tar.zst", "zstd -q -3 -T2"},
	{"xz", ".tar.xz", "xz -1 -T2"},
}

// unpack measures an apply of a whole Debian system from an archive onto a root that
// holds nothing of it, against `tar -x` and a sync: both write every file; liveupd
// also checks and hashes each, journals it and passes its barriers.
func (b *bench) unpack(roots string) error {
	debian, err := filepath.EvalSymlinks(filepath.Join(roots, "vm"))
	if err != nil {
		return fmt.Errorf("there is no Debian root to pack (run tests/setup/root.sh vm): %w", err)
	}
	root, plain := filepath.Join(b.dir, "root"), filepath.Join(b.dir, "debian.tar")
	if _, err := tool("tar", "-C", debian, "--xattrs", "--acls", "--numeric-owner", "--exclude=./dev/*", "-cf", plain, "."); err != nil {
		return err
	}
	st, err := os.Stat(plain)
	if err != nil {
		return err
	}
	for _, c := range compressions {
		archive := filepath.Join(b.dir, "archive"+c.suffix)
		if _, err := tool("sh", "-euc", c.program+` <"$1" >"$2"`, "sh", plain, archive); err != nil {
			return err
		}
		contenders := []struct {
			name string
			run  func() (sample, error)
		}{
			{"liveupd apply", func() (sample, error) {
				return b.timed(b.liveupd, "apply", "--root", root, "--source", "tar:"+archive, "--allow-unsigned", "--yes", "--json")
			}},
			{"tar -x, sync -f", func() (sample, error) {
				return b.timed("sh", "-euc", `tar -C "$2" --xattrs --xattrs-include='*' --acls --numeric-owner -xpf "$1"; sync -f "$2"`, "sh", archive, root)
			}},
		}
		times := make([][]float64, len(contenders))
		var peak []float64
		for i := range b.runs {
			for n := range contenders {
				if err := errors.Join(os.RemoveAll(root), os.MkdirAll(filepath.Join(root, "etc"), 0o755)); err != nil {
					return err
				}
				// GNU tar names groups in ACLs; liveupd looks them up in the root.
				if _, err := tool("cp", filepath.Join(debian, "etc/passwd"), filepath.Join(debian, "etc/group"), filepath.Join(root, "etc")); err != nil {
					return err
				}
				if _, err := tool("sh", "-c", `cat "$1" >/dev/null`, "sh", archive); err != nil { // into the page cache
					return err
				}
				if err := b.settle(); err != nil {
					return err
				}
				s, err := contenders[n].run()
				if err != nil {
					return err
				}
				if err := sameFiles(filepath.Join(debian, "usr"), filepath.Join(root, "usr")); err != nil {
					return fmt.Errorf("%s did not do its work: %w", contenders[n].name, err)
				}
				times[n] = append(times[n], s.MS)
				if n == 0 {
					peak = append(peak, s.PeakMB)
				}
			}
			fmt.Fprintf(os.Stderr, "bench: unpack, %s, run %d of %d\n", c.name, i+1, b.runs)
		}
		label := fmt.Sprintf("a Debian system of %d MB from an archive, %s", st.Size()>>20, c.name)
		own := row{Samples: times[0]}.median()
		for n := range contenders {
			r := row{What: label, Contender: contenders[n].name, Unit: "ms", Samples: times[n]}
			if n > 0 {
				r.Ratio = own / r.median()
			}
			b.rows = append(b.rows, r)
		}
		b.rows = append(b.rows, row{What: "peak memory of it", Contender: contenders[0].name, Unit: "MB", Samples: peak})
		if err := os.Remove(archive); err != nil {
			return err
		}
	}
	return removeAll(root, plain)
}
