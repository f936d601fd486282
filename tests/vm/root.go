package vm

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/liveupd/liveupd/tests/machine"
)

const program = "qemu-system-x86_64"

// Require skips the test where virtual machines cannot run: without root, without qemu, or
// with -short.
func Require(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a virtual machine: not with -short")
	}
	if os.Geteuid() != 0 {
		t.Skip("starts a virtual machine: the root that its kernel comes from needs root")
	}
	for _, tool := range []string{program, "qemu-img", "debootstrap", "xz"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("starts a virtual machine: no %s (run tests/setup/install.sh)", tool)
		}
	}
}

// The cached roots that hold a kernel: Debian 13 with Linux 6.12, and Debian 12 with Linux 6.1 (the
// kernel alone).
const (
	Trixie   = "vm"
	Bookworm = "vm-bookworm"
)

// Root is the folder of the cached root that holds the kernel: Debian 13 with systemd, and what builds an
// initrd. It is made where there is none. Nobody may write to it: machine.CopyRoot copies it.
func Root(t testing.TB) string {
	t.Helper()
	Require(t)
	return machine.CachedRoot(t, Trixie)
}

// Kernel is the kernel of Root, and the folder of its modules.
func Kernel(t testing.TB) (vmlinuz, modules string) {
	t.Helper()
	return KernelOf(t, Trixie)
}

// KernelOf is the kernel of a cached root, and the folder of its modules.
func KernelOf(t testing.TB, name string) (vmlinuz, modules string) {
	t.Helper()
	Require(t)
	root := machine.CachedRoot(t, name)
	kernels, err := filepath.Glob(filepath.Join(root, "boot/vmlinuz-*"))
	if err != nil || len(kernels) != 1 {
		t.Fatalf("the root %s holds %d kernels: %v", root, len(kernels), err)
	}
	version := filepath.Base(kernels[0])[len("vmlinuz-"):]
	return kernels[0], filepath.Join(root, "usr/lib/modules", version)
}
