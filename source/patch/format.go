package patch

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/liveupd/liveupd/change"
)

const magic = "LIVEUPD-PATCH 1\n"

// What a patch may cost whoever applies it. A group and its dictionary are held in
// memory together.
const (
	groupBytes = 24 << 20 // of a group that Make makes, but for one entry's header
	dictBytes  = 32 << 20 // of its dictionary

	maxGroup  = 32 << 20 // that is read
	maxDict   = 32 << 20
	maxFrame  = maxGroup + 1<<20 // zstd's own overhead is less
	maxHead   = 64 << 20         // some 400,000 paths
	maxTotal  = 64 << 30
	maxWindow = 128 << 20
)

// head says what a patch needs and what it does besides its archive. Paths are
// absolute; they are bytes, not text.
type head struct {
	Encoder string  `json:"encoder"`
	Whole   bool    `json:"whole,omitempty"` // both trees are whole systems
	Bases   []Base  `json:"bases,omitempty"`
	Gone    []Gone  `json:"gone,omitempty"`
	Groups  []group `json:"groups"`
}

// Base is a file of the old tree that the patch needs.
type Base struct {
	Path   []byte        `json:"path"`
	Size   int64         `json:"size"`
	Digest change.Digest `json:"sha256"`
	// Becomes is the digest of what the new tree has at this path, zero where that
	// is no file: a machine that has it has the patch already.
	Becomes change.Digest `json:"becomes,omitzero"`
}

// Gone is a path of the old tree that the new one lacks.
type Gone struct {
	Path []byte `json:"path"`
	// Digest of a regular file's content, else zero.
	Digest change.Digest `json:"sha256,omitzero"`
}

// group is one frame.
type group struct {
	Size   int64         `json:"size"`
	Digest change.Digest `json:"sha256"`
	Dict   []part        `json:"dict,omitempty"`
}

// part is a range of a base.
type part struct {
	Base int   `json:"base"` // its number in head.Bases
	Off  int64 `json:"off,omitempty"`
	Len  int64 `json:"len"`
}

// damaged is an error of a file that is no patch, or no whole one.
func damaged(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), change.ErrVerification)
}

func readHead(in io.Reader) (*head, error) {
	start := make([]byte, len(magic)+4)
	if _, err := io.ReadFull(in, start); err != nil {
		return nil, truncated(err)
	}
	if string(start[:len(magic)]) != magic {
		return nil, change.WithHint(damaged("it is no patch of liveupd, or of a version that is not known"),
			"an archive of files is given as tar:FILE; a patch is made by: liveupd diff OLD NEW -o FILE")
	}
	frame, err := readFrame(in, binary.LittleEndian.Uint32(start[len(magic):]))
	if err != nil {
		return nil, err
	}
	text, err := decode(frame, nil, maxHead)
	if err != nil {
		return nil, damaged("its head cannot be read: %v", err)
	}
	h := new(head)
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(h); err != nil {
		return nil, damaged("its head cannot be read: %v", err)
	}
	if dec.More() {
		return nil, damaged("its head is followed by something else")
	}
	return h, h.check()
}

// check refuses a head that says what cannot be.
func (h *head) check() error {
	last := ""
	for _, b := range h.Bases {
		if err := checkPath(string(b.Path)); err != nil {
			return damaged("its head needs %q, which %v", b.Path, err)
		}
		if b.Size < 0 || string(b.Path) <= last {
			return damaged("its head needs %q out of order, or with an impossible size", b.Path)
		}
		last = string(b.Path)
	}
	last = ""
	for _, g := range h.Gone {
		if err := checkPath(string(g.Path)); err != nil {
			return damaged("its head removes %q, which %v", g.Path, err)
		}
		if string(g.Path) <= last {
			return damaged("its head removes %q out of order", g.Path)
		}
		last = string(g.Path)
	}
	var total int64
	for i, g := range h.Groups {
		if g.Size < 0 || g.Size > maxGroup {
			return damaged("group %d has %d bytes; at most %d are read", i+1, g.Size, maxGroup)
		}
		if total += g.Size; total > maxTotal {
			return damaged("it holds more than %d bytes", int64(maxTotal))
		}
		var dict int64
		for _, p := range g.Dict {
			if p.Base < 0 || p.Base >= len(h.Bases) || p.Off < 0 || p.Len < 0 || p.Len > maxDict || p.Off > h.Bases[p.Base].Size-p.Len {
				return damaged("group %d needs a part of a file that there is not", i+1)
			}
			if dict += p.Len; dict > maxDict {
				return damaged("group %d needs more than %d bytes of old files", i+1, maxDict)
			}
		}
	}
	return nil
}

func checkPath(p string) error {
	switch {
	case !path.IsAbs(p) || path.Clean(p) != p || p == "/":
		return errors.New("is no absolute, plain path")
	case strings.IndexByte(p, 0) >= 0 || len(p) > 4095:
		return errors.New("is no name that Linux can hold")
	case p == "/"+storeName || strings.HasPrefix(p, "/"+storeName+"/"):
		return fmt.Errorf("lies in /%s, which is liveupd's own", storeName)
	}
	return nil
}

func truncated(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return damaged("it ends too early")
	}
	return fmt.Errorf("cannot read it: %w", err)
}

func readFrame(in io.Reader, size uint32) ([]byte, error) {
	if size > maxFrame {
		return nil, damaged("a part of it has %d bytes; at most %d are read", size, maxFrame)
	}
	// What is announced need not come: the buffer grows with what does.
	var b bytes.Buffer
	if _, err := io.CopyN(&b, in, int64(size)); err != nil {
		return nil, truncated(err)
	}
	return b.Bytes(), nil
}

// decode unpacks one frame of at most limit bytes.
func decode(frame, dict []byte, limit int64) ([]byte, error) {
	o := []zstd.DOption{
		zstd.WithDecoderConcurrency(1),
		// Of a frame that is small the window counts, which is at least a kilobyte; its size is looked at by who asks.
		zstd.WithDecoderMaxMemory(uint64(max(limit, 1<<20))),
		zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true),
	}
	if len(dict) > 0 {
		o = append(o, zstd.WithDecoderDictRaw(0, dict))
	}
	d, err := zstd.NewReader(nil, o...)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	var h zstd.Header
	if err := h.Decode(frame); err != nil {
		return nil, err
	}
	size := min(limit, 1<<20)
	if h.HasFCS {
		size = int64(min(h.FrameContentSize, uint64(limit)))
	}
	return d.DecodeAll(frame, make([]byte, 0, size))
}
