// Package recovery knows where a commit that a crash cut is recovered at the
// next boot: what of it a root has, what it lacks, and which files make it whole.
//
//  1. In the initrd, after the root and /usr are mounted and before they are
//     switched to: the only place that is safe against a half-replaced libc or
//     systemd. A hook of initramfs-tools or a module of dracut puts
//     liveupd-recover there. Every initrd that can be booted needs it.
//  2. As init= where there is no initrd: liveupd-init recovers and then executes
//     the real init.
//  3. By a unit after local-fs.target, for the other file systems, and as the
//     last resort: where neither of the above ran, PID 1 came from a mixed tree, and
//     the unit boots the machine anew.
//
// Inspect reads each initrd itself: it is concatenated cpio archives, the first
// ones uncompressed, the last in gzip, zstd, xz, lzma, bzip2 or lz4
// (Documentation/driver-api/early-userspace/buffer-format.rst in the kernel), or
// the section .initrd of a unified kernel image. What cannot be read is
// unknown, and never taken for fine. The verdict on a file is kept under
// /run by (path, inode, ctime, size), so that a plan stays quick.
package recovery
