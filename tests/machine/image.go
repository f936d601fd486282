package machine

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// CacheDir is where roots, downloaded packages and running machines lie,
// outside of the source tree.
func CacheDir() string {
	if dir := os.Getenv("LIVEUPD_CACHE"); dir != "" {
		return dir
	}
	return "/var/cache/liveupd"
}

// testsDir is the folder tests of the source tree.
func testsDir() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(filepath.Dir(file))
}

// Require skips the test where machines cannot run: without root, without
// systemd-nspawn, or with -short.
func Require(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("boots a machine: not with -short")
	}
	if os.Geteuid() != 0 {
		t.Skip("boots a machine: needs root")
	}
	for _, tool := range []string{"systemd-nspawn", "debootstrap", "mkfs.ext4", "losetup", "nsenter"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("boots a machine: no %s (run tests/setup/install.sh)", tool)
		}
	}
	if _, err := unifiedCgroup(); err != nil {
		t.Skipf("boots a machine: %v", err)
	}
}

// CachedRoot returns the folder of a cached Debian root (bookworm, trixie or
// small), which it makes where there is none. Nobody may write to it.
func CachedRoot(t testing.TB, name string) string {
	t.Helper()
	cmd := exec.Command(filepath.Join(testsDir(), "setup", "root.sh"), name)
	var errors bytes.Buffer
	cmd.Stderr = &errors
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("cannot make the Debian root %s: %v\n%s", name, err, errors.String())
	}
	return strings.TrimSpace(string(out))
}

// CopyRoot copies a cached root to dir, which must not exist, with owners,
// times, extended attributes and hard links.
func CopyRoot(t testing.TB, name, dir string) {
	t.Helper()
	if err := copyTree(CachedRoot(t, name), dir); err != nil {
		t.Fatal(err)
	}
}

func copyTree(from, to string) error {
	_, err := command("cp", "-a", "--reflink=auto", "--no-target-directory", from, to)
	return err
}

// command runs a tool of the host and returns what it printed.
func command(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	var errors bytes.Buffer
	cmd.Stderr = &errors
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("cannot run %s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(errors.String()))
	}
	return strings.TrimSpace(string(out)), nil
}

// prepare gives a root what it needs to boot read-only.
func prepare(root, hostname string) error {
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails
	files := map[string]string{
		"etc/machine-id": hex.EncodeToString(id) + "\n",
		"etc/hostname":   hostname + "\n",
		"etc/fstab":      "",
		// /var/log is empty at boot.
		"etc/tmpfiles.d/nginx.conf": "d /var/log/nginx 0755 root adm -\n",
		// Hundreds of updates are tried: the least that each is watched.
		"etc/liveupd/liveupd.toml.d/00-tests.toml": "[guard]\nsettle = \"1s\"\n[health]\nsettle = \"1s\"\n",
	}
	for name, content := range files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	// systemd and nginx would make these at the first start, which a read-only
	// root refuses.
	for _, dir := range []string{"var/lib/systemd/linger", "var/lib/systemd/timers", "var/lib/systemd/coredump", "var/lib/private"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(filepath.Join(root, "var/lib/private"), 0o700); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(root, "usr/sbin/nginx")); err == nil {
		const wwwData = 33
		for _, dir := range []string{"body", "proxy", "fastcgi", "uwsgi", "scgi"} {
			path := filepath.Join(root, "var/lib/nginx", dir)
			if err := os.MkdirAll(path, 0o700); err != nil {
				return err
			}
			if err := os.Chown(path, wwwData, 0); err != nil {
				return err
			}
		}
	}
	// Mount points that nspawn would otherwise have to make.
	for _, dir := range []string{"proc", "sys", "dev", "run", "tmp", "var/tmp", "var/log"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	// Timers that read or write the whole system at a random time would disturb
	// what is measured, and fail on a read-only root.
	for _, unit := range []string{"apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer", "console-getty.service", "systemd-growfs-root.service", "systemd-modules-load.service"} {
		link := filepath.Join(root, "etc/systemd/system", unit)
		if _, err := os.Lstat(link); err == nil {
			continue
		}
		if err := os.Symlink("/dev/null", link); err != nil {
			return err
		}
	}
	return nil
}

// treeSize is what the files of a tree take, in bytes.
func treeSize(dir string) (int64, error) {
	var size int64
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			size += max(st.Blocks*512, 4096)
		}
		return nil
	})
	return size, err
}

// makeImage makes an image of a folder with free bytes to spare.
func makeImage(fstype, dir, image string, free int64) error {
	size, err := treeSize(dir)
	if err != nil {
		return err
	}
	const mib = 1 << 20
	blocks := (size + size/8 + free + 64*mib) / mib
	if fstype != "ext4" {
		return fillImage(fstype, dir, image, max(blocks, 400)*mib)
	}
	_, err = command("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard",
		"-N", fmt.Sprint(200000), "-d", dir, image, fmt.Sprintf("%dM", blocks))
	return err
}

// fillImage makes an image by copying: mkfs.xfs and mkfs.btrfs lose hard links or attributes.
func fillImage(fstype, dir, image string, size int64) error {
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(image, size); err != nil {
		return err
	}
	_, err := command("unshare", "--mount", "sh", "-euc", `mkfs."$0" -q "$2"; mkdir "$2.mnt"; mount -o loop "$2" "$2.mnt"; trap 'umount "$2.mnt"; rmdir "$2.mnt"' EXIT
		cp -a --no-target-directory "$1" "$2.mnt"`, fstype, dir, image)
	return err
}

// attach attaches an image to a loop device.
func attach(image string) (device string, err error) {
	return command("losetup", "--find", "--show", image)
}

func detach(device string) error {
	_, err := command("losetup", "--detach", device)
	return err
}
