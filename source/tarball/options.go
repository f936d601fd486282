package tarball

import (
	"github.com/liveupd/liveupd/change"
)

// Limits bound what an archive may cost. A field that is zero has its default.
type Limits struct {
	// Bytes is the most that the files may hold together, holes counted, and
	// the most that the stream may hold after decompression.
	Bytes int64
	// Entries is the most objects, folders that no entry names among them.
	Entries int64
	// Ratio is how many bytes one compressed byte may become, looked at once
	// RatioFrom bytes came out: small archives of zeros are harmless.
	Ratio     int64
	RatioFrom int64
	// Meta is the most bytes of names, link targets and extended attributes
	// that are held in memory, all entries together.
	Meta int64
	// Header is the most bytes of one extended header.
	Header int64
	// Depth is how many components a path may have.
	Depth int
	// Extents is the most pieces of one sparse file.
	Extents int
}

// The defaults are some ten times what the largest distributions' roots need,
// and low enough that no archive can exhaust a server's memory.
const (
	// A root with everything that Debian has for a desktop is 12 GiB.
	defaultBytes = 64 << 30
	// Such a root has 500,000 files; each costs 400 bytes of memory.
	defaultEntries = 2 << 20
	// zstd -19 of a Debian root is 1:6, of logs 1:100; gzip cannot do more
	// than 1:1032, xz and zstd some 1:10000.
	defaultRatio     = 250
	defaultRatioFrom = 1 << 30
	// 500,000 names are 12 MiB: a name is held once, without its folder.
	defaultMeta = 128 << 20
	// The kernel allows 64 KiB in one attribute. Attributes may be there
	// twice (bsdtar), once in base64.
	defaultHeader = 4 << 20
	// Each level is an open descriptor for whoever walks the tree later.
	defaultDepth = 256
	// A map of a million pieces is 16 MiB.
	defaultExtents = 1 << 20
)

// What Linux allows, whatever the limits are.
const (
	maxComponent = 255       // NAME_MAX
	maxPath      = 4095      // PATH_MAX without the NUL byte
	maxXattrName = 255       // XATTR_NAME_MAX
	maxXattr     = 64 << 10  // XATTR_SIZE_MAX
	maxID        = 1<<32 - 2 // -1 says "leave it" to chown(2)
	maxMajor     = 1<<12 - 1
	maxMinor     = 1<<20 - 1
)

func (l Limits) withDefaults() Limits {
	for _, f := range []struct {
		v   *int64
		def int64
	}{
		{&l.Bytes, defaultBytes},
		{&l.Entries, defaultEntries},
		{&l.Ratio, defaultRatio},
		{&l.RatioFrom, defaultRatioFrom},
		{&l.Meta, defaultMeta},
		{&l.Header, defaultHeader},
	} {
		if *f.v <= 0 {
			*f.v = f.def
		}
	}
	if l.Depth <= 0 {
		l.Depth = defaultDepth
	}
	if l.Extents <= 0 {
		l.Extents = defaultExtents
	}
	return l
}

// Options say how an archive is unpacked. The zero value is good.
type Options struct {
	Limits Limits
	// Workers is how many files are written at once; 0: one for each CPU.
	Workers int
	// Progress is called from one goroutine, some times a second and at the end.
	Progress func(Progress)
	// Record receives each object once all is written and nothing will change
	// any more, a folder before what it holds, siblings bytewise, from the goroutine
	// that called Unpack. The node has the digest of a file's content, and inode,
	// ctime and link count as they are in dest: a comparison need not read
	// the file again. It is not called for the root, nor for folders that no entry
	// names (Result.Implied).
	Record func(path string, node *change.Node)
	// Skip leaves out an object, and all that a folder holds. What is
	// skipped is checked like the rest.
	Skip func(path string) bool
	// Layer reads the archive as a layer of a container image: an entry
	// .wh.NAME removes NAME of the layers below (Result.Removed), .wh..wh..opq
	// all that they hold in its folder (Result.Opaque). Without it those are
	// files like others.
	Layer bool
	// ID gives the number of a user or group that an ACL names without one, as
	// GNU tar does; nil refuses such an entry. Owners are never taken by name.
	ID func(group bool, name string) (uint32, error)
	// XZ is the path of the xz program, which is twice as fast as the
	// decoder that is built in; "" looks for it where programs of the system lie,
	// "-" uses the built-in one.
	XZ string
}

// Progress is how far an Unpack has come.
type Progress struct {
	Read    int64 // bytes of the archive, as it was given
	Written int64 // bytes of files' content, holes counted
	Entries int64
}

// Result is what came of an Unpack.
type Result struct {
	Entries int64 // objects made, hard links among them
	Files   int64 // regular files, each inode once
	Bytes   int64 // their content, holes counted
	Read    int64 // bytes of the archive
	// Digest is the SHA-256 of the archive as it was given.
	Digest      change.Digest
	Format      string // of the first entry: "v7", "ustar", "gnu", "pax" or "star"
	Compression string // "none", "gzip", "xz", "zstd" or "bzip2"
	// Root is the entry of the root itself ("./"); nil where there is none. It is
	// not applied to dest, which stays private.
	Root *change.Node
	// Implied are the folders that are there only because something lies in
	// them: root:root 0755, dated 1970. The archive says nothing of them.
	Implied []string
	// Removed and Opaque: see Options.Layer. Sorted.
	Removed []string
	Opaque  []string
	// Warnings tell what of the archive was not taken, each once.
	Warnings []string
}
