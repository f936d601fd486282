// Package transact moves a Delta into the live root: all of it or none of it,
// in place, and takes it back.
//
// Everything lies in .liveupd/tx/ID of each file system that changes (folder
// root:root 0700, checked each time): up holds what is new, mirroring the paths,
// in the form of an overlay's upper; del receives what is removed; one journal
// for all file systems lies on the root's.
//
//  1. Stage. Preflight: free blocks and inodes, immutable files and folders. A
//     ballast is reserved. Changed files are copied into up by workers, hashed
//     while they are written; owner, then mode, then xattrs (chown clears
//     set-id bits and capabilities), times last. A new folder is built whole and
//     will need one rename. No live inode is written, linked or opened for
//     writing: until the commit point nobody outside sees a change.
//  2. Prepare. The journal is written with the identity (file handle, size,
//     mtime, digest) of each object before and after; fsync, then syncfs of each
//     file system through descriptors opened before the first write: barrier 1.
//     From here recovery needs neither the source nor space.
//  3. Commit looks at each path again: what is not as planned, or is held open
//     for writing, refuses the commit with nothing changed.
//  4. The state becomes "committing", durably: the commit point. Before it a
//     crash leaves the old tree, after it recovery makes the new one.
//  5. renameat2 through descriptors that are open already, in a fixed order:
//     additions (NOREPLACE), data and libraries (EXCHANGE), ld.so and libc
//     adjacent, executables, units, os-release, removals (into del), metadata in
//     place, folder mtimes. What comes out of each exchange is looked at; if it is
//     not what the journal names, all is reversed. The exchange leaves each old
//     inode under the staged name: nothing is linked, nothing is copied.
//  6. syncfs: barrier 2; the state becomes "swapped". Unit steps follow, and
//     "verified". The old inodes stay as the rollback generation until Collect.
//
// Forward and backward replay act by identity alone: an operation that is done
// is passed over, one that is not done is done, and one that is neither reverses
// everything. So each may be cut at any call and run again any number of times.
// Nothing relies on the order in which renames reach the disk between barriers.
//
// Recover acts by the state found: none or staging, the staging is removed: the
// old tree; committing, replayed forward: the new tree (or backward where an
// operation or a digest does not fit: the old tree); rolling-back, finished:
// the old tree; swapped, boot, restarting: the tree is new and the caller goes
// on with the plan's steps; verified: garbage is removed. After three attempts
// that did not end it asks for a person instead of trying for ever.
//
// Revert keeps what others changed after the commit: their version is laid beside
// as NAME.liveupd-saved before the old one returns.
package transact
