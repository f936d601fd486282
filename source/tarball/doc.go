// Package tarball is the source SPEC "tar:FILE": it turns an archive into a
// folder, in one pass that decompresses, checks, writes and hashes. What it makes is
// compared and staged like any other tree.
//
// # What is read
//
// Plain tar streams and such in gzip, xz, zstd and bzip2, several members or frames
// one behind the other among them, told by their first bytes and never by a name.
// Headers of v7, ustar, star, GNU tar and pax with what GNU tar, bsdtar and star put
// into pax records: long names, names that are not UTF-8, sparse files in all four
// forms of GNU tar (holes stay holes), nanoseconds, extended attributes
// (SCHILY.xattr, LIBARCHIVE.xattr), ACLs (SCHILY.acl), labels (RHT.security.selinux).
// Owners are numbers; names beside them are another machine's and not looked at. An ACL
// can have nothing but a name: Options.ID gives its number.
//
// # What is refused
//
// Each message names the entry, in quotation marks and in printable ASCII. What is
// an attack, or damage, or what two readers would read differently matches
// change.ErrVerification (exit 6):
//
//	an absolute name; a component ..                   also where it would stay inside
//	an entry below a symlink of the archive            whatever the symlink leads to
//	an entry below a file, fifo, device or hard link
//	a hard link to outside, to a folder, through a symlink, to what does not come before it
//	two entries for one path                           but a folder that is the same again. GNU tar -r
//	                                                   and -u append newer versions; which one counts
//	                                                   must not depend on the reader
//	.liveupd anywhere                                  as name, link target or whiteout
//	a NUL byte in a name; an empty name; a name that ends with a slash and is no folder
//	names over 255 bytes, paths over 4095 bytes        what Linux can hold
//	a symlink to nothing
//	truncated: also where only the end mark is missing
//	something behind the end mark but zeros, or behind the compressed data
//	wrong checksums of headers and of compressed data
//	sizes, ids, modes, devices that are negative or beyond Linux; times beyond 1678 to 2261
//	a body behind what has no content                  GNU tar skips it, others read headers in it
//	extended headers that are malformed, doubled, or belong to nothing
//	two long names, two values of one attribute        bsdtar writes attributes twice, alike
//	path, size, attributes in a global header
//	sparse maps that overlap, descend, leave the file, do not fit the body
//	ACLs that the kernel could not hold
//	more than the Limits                               bytes, entries, ratio, depth, memory
//
// What an honest archive may well hold and is not supported is a plain error (exit 1):
//
//	unknown types of entries; multi-volume and incremental archives; sparse files of star
//	and Solaris; character sets other than UTF-8 and BINARY; overlayfs's whiteouts (c 0 0);
//	an ACL that names somebody without a number and Options.ID does not know; windows over 128 MiB;
//	other archivers' and compressors' formats, which are named; what the file system refuses
//	(attributes, full disk); what in could not read
//
// Accepted with a warning in the Result, because all readers agree and nothing is lost
// that an update needs: records that are not known (SCHILY.fflags), another machine's
// security.ima, security.evm and trusted.overlay.*, volume labels, one block of zeros
// at the end instead of two. Times before 1970 are kept as they are.
//
// # What holds
//
// The tree that the archive describes is built in memory, and each entry is checked
// against it, before a system call is made: dest holds nothing that is not in that tree.
// All paths below dest are opened with RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS and
// RESOLVE_NO_XDEV, all names are made with O_EXCL or its like, so even a fault of
// that check could not leave dest. Nothing is readable for others until Unpack has
// returned, for dest is 0700: folders get their modes and times last.
//
// After an error, a cancelled ctx or a full disk dest is empty again. A process that
// is killed leaves what it had made; the caller removes dest at its next start.
// Nothing is synced: the caller's barrier does that once for all.
//
// # How fast, and for how much memory
//
// One goroutine reads and hashes the archive, one decompresses, one takes the tar
// stream apart and makes folders, and workers write and hash files. Content flows in blocks of 256 KiB of
// a fixed number, and is not copied between decompression and write: 18 MiB in all, beside some 400
// bytes for each entry and what the decoder looks back on. Files of up to 1 MiB wait for
// a worker as a whole; larger ones are written by one while they come.
package tarball
