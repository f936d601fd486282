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

// KernelVersion is the build of the running kernel, as uname -v; "" where it
// cannot be told.
func KernelVersion() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Version[:])
}
