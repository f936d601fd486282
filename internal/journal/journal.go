package journal

import (
	"errors"
	"fmt"

	"github.com/liveupd/liveupd/change"
)

// Version is the format that this package writes and reads.
const Version = 1

// ErrCorrupt tells that the bytes are not those that were written. The error's text names
// the file and the record.
var ErrCorrupt = errors.New("the journal is damaged")

// ErrVersion tells that the journal was written by another version of liveupd.
var ErrVersion = errors.New("the journal has another version")

// Header is what a transaction is.
type Header struct {
	Version  int    `json:"version"`
	ID       string `json:"id"`
	Time     int64  `json:"time"` // when it began, seconds since the epoch
	Source   string `json:"source"`
	Name     string `json:"name,omitempty"`
	Release  string `json:"release,omitempty"` // the update's version, by its manifest
	Sequence uint64 `json:"sequence,omitempty"`
	PlanID   string `json:"plan"`
	// Manifest is the digest of the manifest that the update was checked by.
	Manifest   string        `json:"manifest,omitempty"`
	HostAction change.Action `json:"host_action"`
	Changes    change.Counts `json:"changes"`
	BootID     string        `json:"boot_id,omitempty"` // the kernel's, of the boot that it began in
}

// Volume is one file system that the transaction changes.
type Volume struct {
	Mount Name   `json:"mount"` // where it lies in the root: "/", "/var"
	ID    string `json:"id,omitempty"`
}

// Object is what one name is: enough to know it again, on a later boot too, and
// to put its metadata back.
type Object struct {
	Handle string // sys.Handle; "" where the file system has none
	Type   change.Type
	Mode   uint32
	UID    uint32
	GID    uint32
	Size   int64
	Mtime  int64 // nanoseconds since the epoch
	Rdev   uint64
	Nlink  uint32
	Target string
	Digest change.Digest
	// Xattrs are those of operations that change metadata in place, and of other old
	// objects the SELinux label alone.
	Xattrs map[string][]byte
	Ctime  int64 // nanoseconds since the epoch; in memory only: the exchange changes it
}

// Kind is what one operation does.
type Kind string

// The operations. Staged names are relative to the transaction's folder on the
// operation's volume.
const (
	// Add renames the staged object to the path, where nothing is.
	Add Kind = "add"
	// Exchange swaps the staged object with the one at the path.
	Exchange Kind = "exchange"
	// Remove renames the object at the path to the staged name.
	Remove Kind = "remove"
	// Metadata sets mode, owner, xattrs and mtime of the object at the path.
	Metadata Kind = "metadata"
	// DirTimes sets the mtime of a folder in which names moved; last of all.
	DirTimes Kind = "dirtimes"
	// Member moves with a folder above it: New below an added one, Old below a
	// removed one. Nothing is done for it; it tells whether anyone changed it.
	Member Kind = "member"
)

// Class orders the operations.
type Class uint8

// The order of a commit. ld.so and libc are adjacent, so that the shortest
// possible window has one without the other.
const (
	ClassAdd Class = iota
	ClassData
	ClassLibc
	ClassExecutable
	ClassUnit
	ClassRelease
	ClassRemove
	ClassMetadata
	ClassDirTimes
	ClassMember
)

// Op is one operation.
type Op struct {
	Kind   Kind
	Class  Class
	Volume int    // index of the volume records
	Path   string // in the root
	Staged string // relative to the transaction's folder: "up/usr/lib/x", "del/000001"; "" for what moves nothing
	Old    *Object
	New    *Object
}

// Journal is a journal that was read, or is being made.
type Journal struct {
	Header  Header
	Volumes []Volume
	Ops     Ops
	Made    *change.Plan // of a journal that is being made; one that was read has it in its file

	plan planLine
}

// planLine is where the plan's record lies in the file: it is long, and seldom needed.
type planLine struct {
	record   int
	at, size int64 // size 0: there is none
}

// State is how far a transaction has come.
type State string

// The states, in the order of a transaction's life.
const (
	Staging     State = "staging"
	Committing  State = "committing"
	Swapped     State = "swapped"
	Boot        State = "boot"
	Restarting  State = "restarting"
	Verified    State = "verified"
	RollingBack State = "rolling-back"
	RolledBack  State = "rolled-back"
)

func (s State) valid() bool {
	switch s {
	case Staging, Committing, Swapped, Boot, Restarting, Verified, RollingBack, RolledBack:
		return true
	}
	return false
}

func corrupt(file string, record int, format string, args ...any) error {
	return fmt.Errorf("cannot read %s: record %d: %s: %w", file, record, fmt.Sprintf(format, args...), ErrCorrupt)
}
