// Package change holds the words that every other package speaks: what differs
// between two trees (Delta), what the running host is (Facts), what the
// operator allows (Policy), what will be done about it (Plan, Step) and what
// came of it (Report). It is data only: no I/O, no clock, no imports outside
// the standard library's encoders.
//
// A path is always absolute, clean, slash-separated and relative to the root
// that is updated: "/usr/lib/x.so" is that path inside the root, whatever the
// root is. Paths are bytes: they need not be UTF-8.
package change

import (
	"encoding/hex"
	"fmt"
)

// Digest is the SHA-256 of a regular file's content. The zero value means
// that the content has not been read.
type Digest [32]byte

// IsZero tells whether the content has not been read.
func (d Digest) IsZero() bool { return d == Digest{} }

func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText renders the digest as 64 hexadecimal digits.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads 64 hexadecimal digits.
func (d *Digest) UnmarshalText(b []byte) error {
	if hex.DecodedLen(len(b)) != len(d) {
		return fmt.Errorf("cannot read digest %q: want %d hexadecimal digits", b, 2*len(d))
	}
	if _, err := hex.Decode(d[:], b); err != nil {
		return fmt.Errorf("cannot read digest %q: %w", b, err)
	}
	return nil
}

// Type is the kind of a file system object.
type Type uint8

// The object kinds of inode(7).
const (
	Regular Type = iota + 1
	Directory
	Symlink
	CharDevice
	BlockDevice
	FIFO
	Socket
)

func (t Type) String() string {
	switch t {
	case Regular:
		return "file"
	case Directory:
		return "directory"
	case Symlink:
		return "symlink"
	case CharDevice:
		return "character device"
	case BlockDevice:
		return "block device"
	case FIFO:
		return "fifo"
	case Socket:
		return "socket"
	}
	return "unknown"
}

// Node is one object of a tree: what it is, not where it is.
type Node struct {
	Type    Type
	Mode    uint32 // permission, set-id and sticky bits: st_mode & 07777
	UID     uint32
	GID     uint32
	Size    int64             // bytes of content; 0 for all but regular files
	MtimeNS int64             // nanoseconds since the epoch
	Rdev    uint64            // devices only, as stat's st_rdev
	Target  string            // symlinks only
	Xattrs  map[string][]byte // all extended attributes, ACLs and capabilities among them; nil when none
	Digest  Digest            // regular files only; zero when not read

	// Link names the hard-link group: the path that sorts first among the
	// names of this inode within the tree, "" where it has one name.
	Link string

	// Identity on a live file system; zero in a tree that is only described.
	Dev     uint64 // st_dev, valid for this boot only
	Ino     uint64
	Nlink   uint32
	CtimeNS int64
}

// IsDir tells whether the node is a directory. A nil node is not.
func (n *Node) IsDir() bool { return n != nil && n.Type == Directory }

// Op is what happens to one path.
type Op string

// The operations of a Delta. Metadata is changed in place; the other three move names.
const (
	Add      Op = "add"
	Replace  Op = "replace"
	Remove   Op = "remove"
	Metadata Op = "metadata"
)

// Aspect is a set of ways in which two nodes differ.
type Aspect uint16

// The ways in which two nodes differ.
const (
	AspectType       Aspect = 1 << iota // a file became a directory, a symlink a file, ...
	AspectContent                       // bytes, symlink target or device number
	AspectMode                          // permission, set-id, sticky bits
	AspectOwner                         // uid or gid
	AspectCapability                    // security.capability
	AspectACL                           // system.posix_acl_access, system.posix_acl_default
	AspectXattr                         // any other extended attribute
	AspectLinks                         // which names share the inode
	AspectMtime                         // modification time only
)

var aspectNames = []string{"type", "content", "mode", "owner", "capability", "acl", "xattr", "links", "mtime"}

// Names lists the aspects in a fixed order.
func (a Aspect) Names() []string {
	var out []string
	for i, name := range aspectNames {
		if a&(1<<i) != 0 {
			out = append(out, name)
		}
	}
	return out
}

// InPlace tells whether the difference can be settled on the live inode,
// without moving a name.
func (a Aspect) InPlace() bool { return a&(AspectType|AspectContent|AspectLinks) == 0 }

// Entry is one path that changes.
type Entry struct {
	Path    string
	Op      Op
	Old     *Node  // nil for Add
	New     *Node  // nil for Remove
	Aspects Aspect // for Replace and Metadata
	// From is the path inside the source's content where New is read from; it
	// differs from Path where the entry lands elsewhere (merged-/usr links,
	// NAME.liveupd-new). Empty for Remove and Metadata.
	From string
	// FromLive tells that the content comes from the live root itself at
	// From, not from the source: a name that shares its inode with a path that
	// goes, and must get an inode of its own.
	FromLive bool
	// MadeBy names the program of the new tree that made the path of what changes,
	// "" where the source has it; Made is a regular file's content then, and From is empty.
	MadeBy string
	Made   []byte
	// SameCode tells that other bytes are the same program under the same build
	// ID: stripped, signed, or with another debug link.
	SameCode bool
}

// Delta is what an update changes in a root: sorted by path, no-op entries
// dropped. Every path below an added or removed directory is listed.
type Delta struct {
	Entries   []Entry
	Identical int   // paths of the source that are the same in the root
	Bytes     int64 // content of regular files to be staged
	Warnings  []string
	// Kept are the machine's own versions that stay: the path, and why.
	Kept []Kept
}

// Empty tells whether nothing changes.
func (d *Delta) Empty() bool { return d == nil || len(d.Entries) == 0 }

// Kept is a path that the source carries and the machine's version of which stays.
type Kept struct {
	Path   string
	Reason string
	Beside string // where the source's version was laid, "" for nowhere
}

// Class is who owns a path: what an update may do there.
type Class uint8

// The classes of a path, from the strongest claim of the machine to the
// strongest claim of the image.
const (
	// ClassNever: the machine's alone. Nothing is added, changed or removed.
	ClassNever Class = iota
	// ClassAddOnly: what is missing is added; what exists stays.
	ClassAddOnly
	// ClassThreeWay: the rule of /etc: the recorded base decides.
	ClassThreeWay
	// ClassListed: what the source lists is taken, nothing else is touched.
	ClassListed
	// ClassWhole: the image's alone. What the source lacks is removed.
	ClassWhole
)

func (c Class) String() string {
	switch c {
	case ClassNever:
		return "never"
	case ClassAddOnly:
		return "add-only"
	case ClassThreeWay:
		return "three-way"
	case ClassListed:
		return "listed"
	case ClassWhole:
		return "whole"
	}
	return "unknown"
}

// Verdict is what happens to one path by the ownership rules.
type Verdict uint8

// The verdicts.
const (
	VerdictKeep   Verdict = iota // the live object, or its absence, stays
	VerdictTake                  // the source's object is added or replaces the live one
	VerdictBeside                // the live object stays, the source's is laid beside as NAME.liveupd-new
	VerdictRemove                // the live object goes
)

// Decision is a verdict with its reason.
type Decision struct {
	Verdict Verdict
	Reason  string // one clause, "" where there is nothing to tell
	Warning bool   // the reason belongs into the plan's warnings
}
