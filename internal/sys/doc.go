// Package sys is the only place that speaks to the kernel through
// golang.org/x/sys/unix: thin wrappers that name the call, the paths and the
// flags in their errors, and retry on EINTR where the call permits it.
//
// Every call that changes a file system or a mount is a method of *Kernel, so
// that a test can count the mutating calls and make the Nth one fail, be cut
// short or kill the process. Reading calls are plain functions.
package sys
