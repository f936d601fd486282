// Package catalog keeps two files that make a plan cheap and an ownership
// decision possible: the index and the recorded base.
//
// # The index
//
// A cache of what was read from a tree: (inode, ctime, size) to the content's
// digest and the extended attributes. Any change of an object's content or
// metadata gives it a new ctime, which no program can set, so an entry that
// still matches needs neither a read nor a call for attributes. The device is
// not part of the key, because its number is another one after a reboot; who
// indexes several file systems in one file mixes their name into the inode.
//
// Two writes within one tick of the file system's clock leave the same ctime.
// An object whose ctime lies less than two seconds before the moment when the
// index was loaded, or after it, is therefore never stored (what git calls
// racy): all reads of a run come after that moment.
//
// The index is only a cache. A file that is absent, damaged or of another
// version loads as an empty index.
//
//	offset  size  content, integers little-endian
//	0       8     magic "LUPDIDX" and the version, 1
//	8       4     CRC-32C of all that follows
//	12      4     number of records, n
//	16      4     number of attribute sets
//	20      4     bytes of attribute sets
//	24      64*n  records, ascending by inode, ctime, size:
//	              inode u64, ctime i64 (ns), size i64, digest [32], set u32, zero u32
//	              set 0: no attributes; i: the i-th set, from 1
//	...           attribute sets: uvarint count, then for each attribute, ascending by key,
//	              uvarint length and key, uvarint length and value
//
// # The recorded base
//
// What the last committed update shipped: each path with its node. It tells a
// file that the machine changed from one that the image changed, and verify
// what should be there. A damaged base is an error: an empty one would let an
// update overwrite what the machine changed.
//
//	0       8     magic "LUPDBAS" and the version, 1
//	8       4     CRC-32C of all that follows
//	12      4     number of entries
//	16      ...   entries, ascending bytewise by path:
//	              uvarint bytes shared with the path before (0 in each 16th entry),
//	              uvarint length and the rest of the path, then the node
//
// A node is: type u8, flags u8, uvarint mode, uid, gid, varint mtime (ns), and
// then what the type and the flags call for: uvarint size of a regular file,
// its digest [32] (flag 1), uvarint length and target of a symlink, uvarint
// device number; an attribute set as in the index (flag 2); uvarint length and
// first path of the hard-link group (flag 4).
//
// Both are written beside and renamed, and neither write happens where the
// file already holds the same.
package catalog
