// Package machine boots real Debian machines for the tests: systemd as PID 1
// in a container of systemd-nspawn, on an ext4 image whose file system is
// mounted read-only, as an image-based server's root is.
//
// A machine is made so, and each step has its reason:
//
//  1. A cached root (tests/setup/root.sh) is copied, the caller's Customize
//     changes the copy, and mkfs.ext4 -d makes an image of it. The inodes are a
//     real ext4's, of a file system that no other machine shares.
//  2. The image is attached to a loop device read-write and mounted -o ro, so
//     that the superblock is SB_RDONLY and the mount is too. The device itself is
//     writable: whoever may remount the file system may write to it.
//  3. The machine gets a cgroup of its own in the v2 hierarchy. Machines that were
//     started from one cgroup would share /payload: freezing a unit of the one
//     freezes its namesake in the other.
//  4. systemd-nspawn --read-only boots it, with a network namespace of its own. PID
//     1, and so each service, keeps all capabilities, and the filter of nspawn
//     lets through what a real machine would: --capability=all and
//     --system-call-filter="fanotify_init fanotify_mark bpf keyctl
//     open_by_handle_at name_to_handle_at statmount listmount". With both, a
//     transient unit inside may make a private mount namespace, remount the
//     superblock read-write there, use open_tree, mount_setattr, move_mount and
//     fsopen, and everybody else keeps getting EROFS. nspawn's own default set
//     holds CAP_SYS_ADMIN and would do for that; a real machine's units have all.
//  5. nspawn by itself mounts over /usr/share/zoneinfo, /etc/resolv.conf and
//     /etc/machine-id. Those would be covered paths inside the root that no real
//     machine has, so --timezone=off and --resolv-conf=off, and the image has a
//     machine-id. /var/log and /var/tmp are tmpfs, which the services want.
//
// Commands enter through nsenter into all namespaces of PID 1 and into a cgroup
// of their own, named as a login session's scope is: to whoever reads
// /proc/PID/cgroup it is an operator's shell, not part of a service. nsenter
// bypasses the container's seccomp filter; what a service may do is to be tried
// through systemd-run inside.
//
// What a machine started, mounted or attached is ended, unmounted and detached
// when its test ends. A test binary that was killed leaves its machine behind; its
// lock then is free, and the next Boot sweeps it away.
package machine
