// Package vm starts virtual machines for the tests, whose plug can be pulled: a kernel of
// Debian's in qemu's software emulation. tests/machine boots systemd within seconds, but what
// such a machine wrote stays in the host's page cache whatever happens to it; a disk that
// loses what was not flushed, or fails, and an initrd, need a kernel of their own.
//
//	image := vm.Initramfs(t, vm.Contents{Init: program, Modules: []string{"virtio_blk", "xfs"}})
//	m := vm.Start(t, vm.Config{Kernel: vmlinuz, Initrd: image, Drives: []vm.Drive{{Path: disk}}})
//	m.WaitFor(`ready`, time.Minute)
//	m.Kill()
//
// The kernel and its modules are those of the cached root vm (tests/setup/root.sh). A machine
// is one process, which ends with its test, and with a test binary that was killed.
package vm
