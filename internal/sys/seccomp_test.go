package sys

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// judge runs a filter by hand, as the kernel would (Documentation/networking/filter.rst).
func judge(t *testing.T, filter []unix.SockFilter, arch, number, arg0 uint32) uint32 {
	t.Helper()
	var a uint32
	for pc := 0; pc < len(filter); pc++ {
		in := filter[pc]
		jump := func(yes bool) {
			if yes {
				pc += int(in.Jt)
			} else {
				pc += int(in.Jf)
			}
		}
		switch in.Code {
		case bpfLoad:
			a = map[uint32]uint32{dataNumber: number, dataArch: arch, dataArg0: arg0}[in.K]
		case bpfEqual:
			jump(a == in.K)
		case bpfAbove:
			jump(a >= in.K)
		case bpfBits:
			jump(a&in.K != 0)
		case bpfRet:
			return in.K
		default:
			t.Fatalf("instruction %d is %#x", pc, in.Code)
		}
	}
	t.Fatal("the filter has no end")
	return 0
}

// Every number of every table is judged as the table says, and no other is barred.
func TestFilter(t *testing.T) {
	if len(callTables) == 0 {
		t.Skip("there is no table for this machine")
	}
	filter := program(callTables)
	if len(filter) > 4096 {
		t.Fatalf("the filter has %d instructions: more than the kernel takes", len(filter))
	}
	refused := func(errno unix.Errno) uint32 { return unix.SECCOMP_RET_ERRNO | uint32(errno) }
	for _, table := range callTables {
		for number := range uint32(1000) {
			for _, arg0 := range []uint32{0, unix.CLONE_NEWUSER, unix.CLONE_NEWUSER | unix.CLONE_NEWNS, unix.CLONE_NEWNS, unix.AF_VSOCK, unix.AF_UNIX} {
				want := uint32(unix.SECCOMP_RET_ALLOW)
				switch {
				case slices.Contains(table.barred, number), slices.Contains(table.flags, number) && arg0&unix.CLONE_NEWUSER != 0:
					want = refused(unix.EPERM)
				case slices.Contains(table.absent, number):
					want = refused(unix.ENOSYS)
				case number == table.socket && arg0 == unix.AF_VSOCK:
					want = refused(unix.EAFNOSUPPORT)
				}
				if got := judge(t, filter, table.arch, number, arg0); got != want {
					t.Errorf("arch %#x, call %d(%#x): %#x; want %#x", table.arch, number, arg0, got, want)
				}
			}
		}
		if table.highBits > 0 {
			if got := judge(t, filter, table.arch, table.highBits|1, 0); got != refused(unix.ENOSYS) {
				t.Errorf("arch %#x: a call of the other ABI: %#x", table.arch, got)
			}
		}
	}
	if got := judge(t, filter, 0x1234, 1, 0); got != refused(unix.ENOSYS) {
		t.Errorf("a call of an unknown arch: %#x", got)
	}
}
