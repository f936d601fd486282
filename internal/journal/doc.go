// Package journal is the durable step list of a transaction: what moves where,
// what every object was and will be, and the plan, so that a crash at any
// instant can be finished or taken back without the source.
//
// The journal file is written once, before the commit point, and never changed:
//
//	CRC JSON\n      one line for each record, in the order of the commit
//
// CRC is the CRC-32C of the JSON bytes, 8 hexadecimal digits. The first record
// is the header with the format's version; volumes and operations follow, then
// the plan; the last is the end record with the number of records before it and
// the SHA-256 of all bytes before its own line. Whoever reads it learns of each
// cut or changed byte by name (ErrCorrupt) and never acts on half a journal.
// Names are bytes: what is not printable ASCII, and the percent sign, is %XX.
//
// The state file is small and replaced atomically: write beside, fsync, rename,
// fsync the folder. Its rename to "committing" is the commit point. The steps
// file is appended to, one line for each unit or host step begun or done; a
// torn last line is what a crash leaves there and is ignored.
package journal
