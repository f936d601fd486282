package sys

import "golang.org/x/sys/unix"

// callTables are arm64's own calls and 32-bit arm's, by arch/arm/tools/syscall.tbl of the kernel.
var callTables = []callTable{
	{
		arch: unix.AUDIT_ARCH_AARCH64,
		barred: []uint32{
			unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL, unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD,
			unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD, unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_SYSLOG,
		},
		absent: []uint32{unix.SYS_CLONE3, unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER},
		flags:  []uint32{unix.SYS_CLONE, unix.SYS_UNSHARE}, socket: unix.SYS_SOCKET,
	},
	{
		arch:   unix.AUDIT_ARCH_ARM,
		barred: []uint32{309, 310, 311, 386, 364, 388, 347, 401, 371, 103},
		absent: []uint32{435, 425, 426, 427},
		flags:  []uint32{120, 337}, socket: 281,
	},
}
