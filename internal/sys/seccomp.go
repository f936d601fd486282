package sys

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A filter of system calls (seccomp(2), SECCOMP_MODE_FILTER) for what capabilities do not
// bar to a process that is root: keys of the host's other users, programs for its
// kernel, files by their handles, new user namespaces (in which every capability is had
// again, and half of the kernel's code is reached by it), io_uring, which no filter sees into.
// A call that is barred fails with EPERM; clone3 and io_uring, whose callers have another way,
// with ENOSYS; so does all of an ABI that is not known here.

// callTable is what a filter knows of one ABI of system calls.
type callTable struct {
	arch     uint32 // AUDIT_ARCH_* (linux/audit.h)
	barred   []uint32
	absent   []uint32 // ENOSYS
	flags    []uint32 // clone and unshare: barred with CLONE_NEWUSER in the first argument
	socket   uint32   // barred for AF_VSOCK, which leads to the machine's own host; 0 for none
	highBits uint32   // a number from this on is of another ABI of the same arch; 0 for none
}

// Of linux/seccomp.h, struct seccomp_data: where the fields are, little-endian.
const (
	dataNumber = 0
	dataArch   = 4
	dataArg0   = 16
)

const (
	bpfLoad  = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	bpfEqual = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	bpfAbove = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
	bpfBits  = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
	bpfRet   = unix.BPF_RET | unix.BPF_K
)

// program assembles the filter. Each table is a block that ends in a return, so that no jump is
// longer than to the next few instructions.
func program(tables []callTable) []unix.SockFilter {
	refuse := func(errno unix.Errno) unix.SockFilter {
		return unix.SockFilter{Code: bpfRet, K: unix.SECCOMP_RET_ERRNO | uint32(errno)}
	}
	out := []unix.SockFilter{{Code: bpfLoad, K: dataArch}}
	for _, t := range tables {
		block := []unix.SockFilter{{Code: bpfLoad, K: dataNumber}}
		// when adds: if the number is n, these instructions, else on.
		when := func(n uint32, do ...unix.SockFilter) {
			block = append(block, unix.SockFilter{Code: bpfEqual, Jf: uint8(len(do)), K: n})
			block = append(block, do...)
		}
		if t.highBits > 0 {
			block = append(block, unix.SockFilter{Code: bpfAbove, Jf: 1, K: t.highBits}, refuse(unix.ENOSYS))
		}
		for _, n := range t.barred {
			when(n, refuse(unix.EPERM))
		}
		for _, n := range t.absent {
			when(n, refuse(unix.ENOSYS))
		}
		allow := unix.SockFilter{Code: bpfRet, K: unix.SECCOMP_RET_ALLOW}
		for _, n := range t.flags {
			when(n, unix.SockFilter{Code: bpfLoad, K: dataArg0}, unix.SockFilter{Code: bpfBits, Jf: 1, K: unix.CLONE_NEWUSER}, refuse(unix.EPERM), allow)
		}
		if t.socket > 0 {
			when(t.socket, unix.SockFilter{Code: bpfLoad, K: dataArg0}, unix.SockFilter{Code: bpfEqual, Jf: 1, K: unix.AF_VSOCK}, refuse(unix.EAFNOSUPPORT), allow)
		}
		block = append(block, allow)
		out = append(out, unix.SockFilter{Code: bpfEqual, Jf: uint8(len(block)), K: t.arch})
		out = append(out, block...)
	}
	return append(out, refuse(unix.ENOSYS))
}

// BarCalls bars these system calls to this process, all its threads, and whatever it
// starts, for good. The error is an *UnsupportedError where there is no table for this machine,
// or the kernel has no filters. It needs CAP_SYS_ADMIN: no_new_privs would take set-id programs
// their meaning.
func BarCalls() error {
	if len(callTables) == 0 {
		return &UnsupportedError{Feature: "a filter of system calls on " + runtime.GOARCH, Needs: "a table of its system calls"}
	}
	filter := program(callTables)
	fprog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	// SPEC_ALLOW: before Linux 5.16 a filter slows a process down for good against a
	// processor's side channels, as if it were a stranger's.
	flags := uintptr(unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW)
	call := func(flags uintptr) (uintptr, unix.Errno) {
		r, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&fprog)))
		return r, errno
	}
	thread, errno := call(flags)
	if errno == unix.EINVAL { // SPEC_ALLOW is Linux 4.17's
		thread, errno = call(unix.SECCOMP_FILTER_FLAG_TSYNC)
	}
	runtime.KeepAlive(filter)
	switch {
	case errno == unix.ENOSYS || errno == unix.EINVAL:
		return &UnsupportedError{Feature: "a filter of system calls", Needs: "CONFIG_SECCOMP_FILTER"}
	case errno != 0:
		return os.NewSyscallError("seccomp", errno)
	case thread != 0:
		return fmt.Errorf("cannot bar system calls: thread %d has another filter", thread)
	}
	return nil
}
