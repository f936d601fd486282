package recovery

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"
)

// What is looked for in an initrd.
const (
	// versionFile holds the versions of the journal that the initrd's
	// liveupd-recover reads, in decimal, separated by white space.
	versionFile = "usr/lib/liveupd/journal-version"
	programFile = "usr/bin/liveupd-recover"
)

// hookFiles are what starts it there: initramfs-tools' script, dracut's hook.
func isHook(name string) bool {
	return name == "scripts/local-bottom/liveupd" ||
		strings.Contains(name, "/dracut/hooks/pre-pivot/") && strings.HasSuffix(name, "liveupd-recover.sh")
}

// contents is what an initrd holds of us.
type contents struct {
	each          func(name string) // is told the name of each file that has content; nil where nobody asks
	Program, Hook bool
	Versions      []int
}

func (c *contents) complete() bool {
	return c.each == nil && c.Program && c.Hook && len(c.Versions) > 0
}

// errDone ends the reading of an initrd in which all has been found.
var errDone = errors.New("all was found")

// readInitrd looks for our files in an initrd.
func readInitrd(r io.Reader) (contents, error) {
	var c contents
	err := c.segments(bufio.NewReaderSize(r, 1<<16), 0)
	if errors.Is(err, errDone) {
		err = nil
	}
	return c, err
}

// magics are the first bytes of what an initrd can be compressed with.
var magics = []struct {
	name  string
	magic string
	open  func(*bufio.Reader) (io.Reader, error)
}{
	{"gzip", "\x1f\x8b", func(r *bufio.Reader) (io.Reader, error) {
		z, err := gzip.NewReader(r)
		if err == nil {
			z.Multistream(false)
		}
		return z, err
	}},
	{"zstd", "\x28\xb5\x2f\xfd", func(r *bufio.Reader) (io.Reader, error) {
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(1<<30))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}},
	{"xz", "\xfd7zXZ\x00", func(r *bufio.Reader) (io.Reader, error) { return xz.NewReader(r) }},
	{"lzma", "\x5d\x00\x00", func(r *bufio.Reader) (io.Reader, error) { return lzma.NewReader(r) }},
	{"bzip2", "BZh", func(r *bufio.Reader) (io.Reader, error) { return bzip2.NewReader(r), nil }},
	{"lz4", lz4Magic, func(r *bufio.Reader) (io.Reader, error) { return newLZ4(r) }},
}

// segments reads one archive after the other. Archives within a compressed one are
// as the kernel reads them: one level deep.
func (c *contents) segments(r *bufio.Reader, depth int) error {
	for archives := 0; ; {
		// Zeros pad an archive to four bytes, or to a block.
		for {
			b, err := r.Peek(1)
			if errors.Is(err, io.EOF) || err != nil && depth > 0 && archives > 0 {
				// What pads a file behind the compressed part is no part of that.
				return nil
			}
			if err != nil {
				return err
			}
			if b[0] != 0 {
				break
			}
			if _, err := r.Discard(1); err != nil {
				return err
			}
		}
		head, _ := r.Peek(6) // a short rest has no known magic
		if bytes.HasPrefix(head, []byte("070701")) || bytes.HasPrefix(head, []byte("070702")) {
			if err := c.archive(r); err != nil {
				return err
			}
			archives++
			continue
		}
		if depth > 0 {
			return errors.New("no cpio archive in the compressed part")
		}
		known := false
		for _, m := range magics {
			if !bytes.HasPrefix(head, []byte(m.magic)) {
				continue
			}
			known = true
			z, err := m.open(r)
			if err == nil {
				err = c.segments(bufio.NewReaderSize(z, 1<<16), 1)
			}
			if errors.Is(err, errDone) {
				return err
			}
			if err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
			break
		}
		if !known {
			return fmt.Errorf("no archive begins with % x", head)
		}
	}
}

// maxVersionFile is far above what the version file has.
const maxVersionFile = 4096

// archive reads one archive in the "new ASCII" format to its trailer.
func (c *contents) archive(r *bufio.Reader) error {
	const headerSize, fieldSize = 110, 8
	header := make([]byte, headerSize)
	for {
		if _, err := io.ReadFull(r, header); err != nil {
			return fmt.Errorf("the archive is cut short: %w", err)
		}
		if string(header[:5]) != "07070" {
			return errors.New("the archive is damaged")
		}
		field := func(n int) (int64, error) {
			return strconv.ParseInt(string(header[6+n*fieldSize:6+(n+1)*fieldSize]), 16, 64)
		}
		size, err := field(6)
		if err != nil {
			return fmt.Errorf("the archive is damaged: %w", err)
		}
		length, err := field(11)
		if err != nil || length < 1 || length > 4096 {
			return fmt.Errorf("the archive is damaged: a name of %d bytes", length)
		}
		name := make([]byte, length+pad(headerSize+length))
		if _, err := io.ReadFull(r, name); err != nil {
			return fmt.Errorf("the archive is cut short: %w", err)
		}
		text := string(bytes.TrimRight(name[:length], "\x00"))
		if text == "TRAILER!!!" {
			return nil
		}
		body := size + pad(size)
		entry := strings.TrimPrefix(path.Clean("/"+text), "/")
		if c.each != nil && size > 0 {
			c.each(entry)
		}
		switch {
		case entry == versionFile && size > 0 && size <= maxVersionFile:
			b := make([]byte, body)
			if _, err := io.ReadFull(r, b); err != nil {
				return fmt.Errorf("the archive is cut short: %w", err)
			}
			c.Versions = parseVersions(string(b[:size]))
			body = 0
		case entry == programFile && size > 0:
			c.Program = true
		case isHook(entry) && size > 0:
			c.Hook = true
		}
		if _, err := io.CopyN(io.Discard, r, body); err != nil {
			return fmt.Errorf("the archive is cut short: %w", err)
		}
		if c.complete() {
			return errDone
		}
	}
}

func pad(n int64) int64 { return (4 - n%4) % 4 }

func parseVersions(s string) []int {
	var out []int
	for f := range strings.FieldsSeq(s) {
		if n, err := strconv.Atoi(f); err == nil {
			out = append(out, n)
		}
	}
	return out
}
