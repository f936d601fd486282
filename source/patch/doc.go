// Package patch makes and reads an update that is written as a difference: what
// turns one tree into another, for machines that have the first one.
//
// A patch is a tar archive of what changes, in the pax format, cut into groups.
// Each group is a zstd frame that was made against some files of the old tree, as
// by `zstd --patch-from`: those files, one after the other, are its dictionary.
// Files for which that does not pay, and all of /etc and /var, where a machine has
// its own, are in it whole. Groups are small, so that who applies a patch needs
// little memory, and can be made side by side.
//
// The file, numbers in little endian:
//
//	"LIVEUPD-PATCH 1\n"
//	u32       bytes of the head's frame
//	frame     the head, JSON (type head)
//	for each group of the head:
//	  u32     bytes of the frame
//	  frame   the group
//
// Nothing follows. The head names each file of the old tree that a group needs, with
// its digest, so that a machine which has another one refuses the patch before
// anything is written; and each path that goes, for an archive cannot say that.
// Whether what comes out is right is not left to that: each group has a digest.
//
// What comes out is read by the reader of archives, with all its checks: this
// package makes no file.
//
// The same two trees give the same patch, byte for byte, by the same encoder; the
// head names it. The zstd program is used where it is there, for it packs better;
// the built-in encoder where it is not.
package patch
