package sys

import "golang.org/x/sys/unix"

// callTables are x86-64's own calls (those of x32, which begin at a bit of their own, not
// among them) and i386's, by arch/x86/entry/syscalls of the kernel.
var callTables = []callTable{
	{
		arch: unix.AUDIT_ARCH_X86_64, highBits: 0x40000000,
		barred: []uint32{
			unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL, unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD,
			unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD, unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_SYSLOG,
		},
		absent: []uint32{unix.SYS_CLONE3, unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER},
		flags:  []uint32{unix.SYS_CLONE, unix.SYS_UNSHARE}, socket: unix.SYS_SOCKET,
	},
	{
		arch:   unix.AUDIT_ARCH_I386,
		barred: []uint32{286, 287, 288, 357, 336, 374, 283, 342, 103}, // in the same order; there is no kexec_file_load
		absent: []uint32{435, 425, 426, 427},
		flags:  []uint32{120, 310}, socket: 359, // socketcall, the older way, hides its arguments
	},
}
