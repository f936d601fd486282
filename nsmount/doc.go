// Package nsmount decides who may see the root writable, and shows an update
// before it is committed.
//
// A root that is read-only stays so for everybody else while an update writes
// to it:
//
//  1. The work is done by a re-executed child in a mount namespace of its own,
//     copied from PID 1's and not from the caller's, which may be a login's
//     with other mounts (Command, Start). Its mounts are slaves: what the host
//     unmounts goes here too, and nothing that is mounted here is seen outside
//     (Isolate).
//  2. Each real file system of the root is opened as a detached copy of its
//     mount, without what is mounted below it (Open). A path that some other
//     mount hides is thus reached, and no exchange meets a mount point.
//  3. Read-only means two flags, one of the mount and one of the file system
//     behind all its mounts. The mount's is cleared on the copy alone. The
//     file system's is touched only where it is set (MakeWritable). Before
//     that, every mount of that file system in every mount namespace that has
//     no read-only flag of its own is given one, because the file system's
//     flag was all that kept it read-only; one that cannot be given the flag
//     makes the whole refuse.
//  4. Restore goes the same way back: the copies, then the file system, and
//     only when that is read-only again the flags that step 3 gave. Where the
//     kernel refuses, because a file is open for writing or a deleted one in
//     use, the holders are named, the others' mounts keep their flag, and
//     Restore can be called again.
//  5. What step 3 is about to do is noted first, in a directory that goes with
//     the boot (Remember). After a kill the next process takes the notes over,
//     and its Restore is the one that the killed process owes.
//
// Guarantees: no mount but our copies ever accepts a write that it refused
// before. A file system that was writable is never made read-only, whichever
// of its subvolumes or binds were. Nothing that MakeWritable changed outlives a
// Restore that returned no error.
//
// The staged view (OpenView) is the root as it will be, in which programs that
// validate a configuration run:
//
//  1. overlay A: the file system alone, read-only.
//  2. overlay B: the staged upper as a layer over A, both read-only, and over
//     them a tmpfs that takes what is written and is thrown away: validators
//     open their logs and pid files. Nothing is ever written into the staged
//     upper. As the upper of an overlay it would get trusted.overlay.origin,
//     .impure and .uuid attributes by being looked at, be the overlay mounted
//     read-only or not. And directly over the file system it cannot be a
//     lower layer, since it lies inside it (ELOOP): A stands between.
//  3. The same for each file system of the root, and throwaway copies of the
//     tmpfs and others that hide paths of it.
//  4. Fresh /proc, /dev, /run and /tmp, a read-only /sys, nothing to be seen of
//     /.liveupd, and no socket of the running system.
//  5. New mount, pid, ipc and uts namespaces, few capabilities, no new
//     privileges. The network is the host's.
//
// The view lives as long as one Run: the processes that are left are killed,
// the mounts go with the namespace.
package nsmount
