package sys

import "golang.org/x/sys/unix"

// KernelRelease is the running kernel's release, as uname -r prints it; ""
// where the kernel does not say.
func KernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}
