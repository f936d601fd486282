package layouts

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/liveupd/liveupd/change"
)

// wantRefused looks for an error with text and a hint, from the plan and the apply.
func wantRefused(t *testing.T, at, source, text, hint string, verbs ...string) {
	t.Helper()
	for _, name := range verbs {
		_, err := try(t, at, source, name)
		got, ok := errors.AsType[*change.HintError](err)
		if err == nil || !strings.Contains(err.Error(), text) || !ok || !strings.Contains(got.Hint, hint) {
			t.Errorf("%s: %v (%+v); want %q and %q", name, err, got, text, hint)
		}
	}
}

// A root whose blocks are checked against a tree of hashes, as systemd-veritysetup
// sets it up.
func onVerity(t *testing.T, data, hashes string) {
	fill(t, data)
	at := filepath.Join(t.TempDir(), "root")
	mount(t, at, "-t", "ext4", data)
	populate(t, at)
	run(t, "umount", at)
	blocks := sectors(t, data) / 8
	digest := hashTree(t, data, hashes, blocks)
	table := fmt.Sprintf("1 %s %s 4096 4096 %d 0 sha256 %s -", data, hashes, blocks, digest)
	verity := mapper(t, "verity", "CRYPT-VERITY-0123456789abcdef-root", true, target{0, blocks * 8, "verity", table})
	run(t, "mount", "-t", "ext4", "-o", "ro", verity, at)
	t.Run("run", func(t *testing.T) {
		old := snapshot(t, at, nil) // each block that this reads is checked
		wantRefused(t, at, update(t), "dm-verity protects", "systemd-sysupdate", "plan", "apply")
		same(t, "a refused update changed the tree", old, snapshot(t, at, nil))
	})
}

// hashTree writes the hashes of a device's blocks as dm-verity reads them (version 1,
// SHA-256, no salt): the topmost level first. It gives the root's digest.
func hashTree(t *testing.T, data, hashes string, blocks uint64) string {
	t.Helper()
	in, err := os.Open(data)
	must(t, err)
	defer in.Close()
	buf := make([]byte, 4096)
	level := make([]byte, 0, blocks*sha256.Size)
	for n := range blocks {
		_, err := in.ReadAt(buf, int64(n)*4096)
		must(t, err)
		sum := sha256.Sum256(buf)
		level = append(level, sum[:]...)
	}
	var levels [][]byte
	for {
		for len(level)%4096 != 0 {
			level = append(level, 0)
		}
		levels = append(levels, level)
		if len(level) == 4096 {
			break
		}
		var above []byte
		for b := range slices.Chunk(level, 4096) {
			sum := sha256.Sum256(b)
			above = append(above, sum[:]...)
		}
		level = above
	}
	out, err := os.OpenFile(hashes, os.O_WRONLY, 0)
	must(t, err)
	defer out.Close()
	for _, level := range slices.Backward(levels) {
		_, err := out.Write(level)
		must(t, err)
	}
	must(t, out.Sync())
	top := sha256.Sum256(levels[len(levels)-1])
	return hex.EncodeToString(top[:])
}

// A root that a server exports cannot exchange names on the client, which is said
// before anything is staged; on the server it can be updated, and the client sees it.
func onNFS(t *testing.T, dev string) {
	fill(t, dev)
	exported := filepath.Join(t.TempDir(), "exported")
	mount(t, exported, "-t", "ext4", dev)
	populate(t, exported)
	at := filepath.Join(t.TempDir(), "root")
	must(t, os.Mkdir(at, 0o755))
	serve(t, exported)
	must(t, syscall.Mount("127.0.0.1:/", at, "nfs4", 0, "vers=4.2,addr=127.0.0.1,clientaddr=127.0.0.1,actimeo=0"))
	cleanMount(t, at)
	t.Run("run", func(t *testing.T) {
		old := snapshot(t, exported, nil)
		source := update(t)
		wantRefused(t, at, source, "exchanging two names is not supported", "on its server, with --root", "plan", "apply")
		same(t, "a refused update changed the tree", old, snapshot(t, exported, nil))
		if left, err := filepath.Glob(filepath.Join(exported, ".liveupd/tx/*")); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v %v", left, err)
		}
		verb(t, exported, source, "apply")
		if got := content(t, at, "usr/lib/app/data/b"); got != "b 2" {
			t.Errorf("the client sees %q after the update on the server", got)
		}
		verb(t, exported, "", "rollback")
		same(t, "after the rollback on the server", old, snapshot(t, exported, nil))
		// The client's own memory of the server's times would tell of a drift.
	})
	t.Run("in a root", func(t *testing.T) {
		top := filepath.Join(t.TempDir(), "top")
		must(t, os.Mkdir(top, 0o755))
		mount(t, top, "-t", "tmpfs", "tmpfs")
		mount(t, filepath.Join(top, "srv/nfs"), "--bind", at)
		source := t.TempDir()
		write(t, source, "srv/nfs/x", "x", 0o644)
		wantRefused(t, top, source, "/srv/nfs is a nfs4", "leave /srv/nfs out", "plan", "apply")
	})
}

// serve exports a folder to 127.0.0.1 by NFS 4: what rpc.mountd and rpc.nfsd
// tell the kernel's server.
func serve(t *testing.T, dir string) {
	t.Helper()
	run(t, "ifconfig", "lo", "127.0.0.1", "up")
	run(t, "mount", "-t", "nfsd", "nfsd", "/proc/fs/nfsd")
	const never, flags = 2147483647, 0x2000 | 0x400 | 0x2 // fsid, no_subtree_check, insecure; root stays root
	for _, step := range [][2]string{
		{"/proc/fs/nfsd/versions", "-3 +4 +4.1 +4.2"},
		{"/proc/fs/nfsd/nfsv4leasetime", "10"},
		{"/proc/fs/nfsd/nfsv4gracetime", "10"},
		{"/proc/fs/nfsd/threads", "2"},
		{"/proc/net/rpc/auth.unix.ip/channel", fmt.Sprintf("nfsd 127.0.0.1 %d clients", never)},
		{"/proc/net/rpc/nfsd.export/channel", fmt.Sprintf("clients %s %d %d 65534 65534 0", dir, never, flags)},
		{"/proc/net/rpc/nfsd.fh/channel", fmt.Sprintf(`clients 1 \x00000000 %d %s`, never, dir)},
	} {
		if err := os.WriteFile(step[0], []byte(step[1]+"\n"), 0); err != nil {
			t.Fatalf("%s: %v", step[0], err)
		}
		if strings.HasSuffix(step[0], "threads") {
			t.Cleanup(func() {
				must(t, os.WriteFile(step[0], []byte("0\n"), 0))
				for _, cache := range []string{"nfsd.fh", "nfsd.export", "auth.unix.ip"} {
					must(t, os.WriteFile("/proc/net/rpc/"+cache+"/flush", []byte("2147483647\n"), 0))
				}
			})
		}
	}
}

// limitProject is xfs_quota's limit: so many bytes for a project.
func limitProject(t *testing.T, dev string, id uint32, bytes uint64) {
	t.Helper()
	// struct fs_disk_quota of linux/dqblk_xfs.h: version 1, a project's, both block limits set.
	q := make([]byte, 112)
	q[0], q[1] = 1, 2
	binary.NativeEndian.PutUint16(q[2:], 1<<2|1<<3)
	binary.NativeEndian.PutUint32(q[4:], id)
	binary.NativeEndian.PutUint64(q[8:], bytes/512)
	binary.NativeEndian.PutUint64(q[16:], bytes/512)
	const setLimits, projects = 'X'<<8 + 4, 2
	quotactl(t, setLimits<<8|projects, dev, id, &q[0])
}

func quotactl(t *testing.T, cmd uintptr, dev string, id uint32, arg *byte) {
	t.Helper()
	name, err := syscall.BytePtrFromString(dev)
	must(t, err)
	if _, _, errno := syscall.Syscall6(syscall.SYS_QUOTACTL, cmd, uintptr(unsafe.Pointer(name)), uintptr(id), uintptr(unsafe.Pointer(arg)), 0, 0); errno != 0 {
		t.Fatalf("quotactl %x for %s: %v", cmd, dev, errno)
	}
}

// A project's quota, which holds root too, is named, and the tree is the old one.
// xfs says of it that there is no space.
func onQuota(t *testing.T, dev string) {
	at := filepath.Join(t.TempDir(), "root")
	mount(t, at, "-t", "xfs", "-o", "prjquota", dev)
	populate(t, at)
	inProject(t, filepath.Join(at, "usr/lib/app"), 42)
	run(t, "sync")
	t.Run("run", func(t *testing.T) {
		source := update(t)
		write(t, source, "usr/lib/app/big", strings.Repeat("x", 1<<20), 0o644)
		old := snapshot(t, at, nil)
		limitProject(t, dev, 42, 256<<10)
		wantRefused(t, at, source, "a project's quota", "quota", "apply")
		same(t, "an update over the quota changed the tree", old, snapshot(t, at, nil))
		limitProject(t, dev, 42, 8<<20)
		verb(t, at, source, "apply")
		// What a rollback brings back is counted already.
		limitProject(t, dev, 42, 64<<10)
		verb(t, at, "", "rollback")
		same(t, "rolled back under the quota", old, snapshot(t, at, nil))
	})
}

// Who may exceed no quota, as root in a container, is told of a user's by name.
func withoutPrivilege(t *testing.T, dev string) {
	at := filepath.Join(t.TempDir(), "root")
	mount(t, at, "-t", "ext4", "-o", "usrquota,grpquota,prjquota", dev)
	names, err := os.ReadDir(at)
	must(t, err)
	for _, name := range names { // of the test before
		must(t, os.RemoveAll(filepath.Join(at, name.Name())))
	}
	populate(t, at)
	t.Run("run", func(t *testing.T) {
		source := update(t)
		write(t, source, "usr/lib/app/data/theirs", strings.Repeat("x", 1<<20), 0o644)
		must(t, os.Chown(filepath.Join(source, "usr/lib/app/data/theirs"), 33, 33))
		old := snapshot(t, at, nil)
		// struct if_dqblk of linux/quota.h: limits in KiB, and which fields count.
		q := make([]byte, 72)
		binary.NativeEndian.PutUint64(q[0:], 256)
		binary.NativeEndian.PutUint64(q[8:], 256)
		binary.NativeEndian.PutUint32(q[64:], 1)
		const setQuota, users = 0x800008, 0
		quotactl(t, setQuota<<8|users, dev, 33, &q[0])
		cmd := exec.Command("/proc/self/exe", "die", "apply", at, source, "0")
		cmd.Env = append(os.Environ(), "LAYOUTS_DROP=1")
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "gives no more for its quota") || !strings.Contains(string(out), "ext4") {
			t.Errorf("over the quota: %v\n%s", err, out)
		}
		verb(t, at, "", "recover")
		same(t, "an update over the quota changed the tree", old, snapshot(t, at, nil))
		verb(t, at, source, "apply") // this process may exceed it
		verb(t, at, "", "rollback")
		same(t, "after the rollback", old, snapshot(t, at, nil))
	})
}

// dropResource gives up CAP_SYS_RESOURCE, which lets root exceed quotas, by executing
// this program anew without it.
func dropResource() error {
	const boundingDrop, sysResource = 24, 24
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, boundingDrop, sysResource, 0); errno != 0 {
		return errno
	}
	return syscall.Exec("/proc/self/exe", os.Args, slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "LAYOUTS_DROP=") }))
}
