// Package elfcode tells whether two ELF files are the same program, whatever
// their bytes are: one may be stripped, signed, or point to other debug files.
//
//  1. Both carry the same build ID (the NT_GNU_BUILD_ID note, elf(5)). It is a
//     hash that the linker makes of what it links, so another one is another
//     program, and none is no answer.
//  2. A build ID is a claim, and copied along by whoever patches a binary. So
//     what the kernel and ld.so load is compared too: the program headers, and
//     the content of each PT_LOAD segment.
//  3. Left out is where things lie in the file, which is what a stripper
//     changes: the header's own words on sections, and p_offset of the program
//     headers. What no segment holds (symbols, debug links, comments,
//     signatures) is never seen by a process.
//
// Anything that cannot be read or understood is "not the same".
package elfcode

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// ErrNotELF tells that the file does not begin as an ELF file.
var ErrNotELF = errors.New("no ELF file")

// maxNotes bounds a note segment in bytes; the largest that occur, of core
// files aside, hold some kilobytes.
const maxNotes = 1 << 20

// Open reads the headers that the kernel and ld.so read: the file's and the
// segments'. Section headers may be stripped, and may lie: nobody who loads a
// program looks at them, and neither does Open.
func Open(r io.ReaderAt) (*elf.File, error) {
	var ident [elf.EI_NIDENT]byte
	if n, err := r.ReadAt(ident[:], 0); n < len(ident) || string(ident[:4]) != elf.ELFMAG {
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("cannot read ELF headers: %w", err)
		}
		return nil, ErrNotELF
	}
	f, err := elf.NewFile(masked{r, sectionWords(elf.Class(ident[elf.EI_CLASS]))})
	if err != nil {
		return nil, fmt.Errorf("cannot read ELF headers: %w", err)
	}
	return f, nil
}

// span is a range of bytes of a file.
type span struct{ from, to int64 }

// sectionWords are the fields of the file header that describe sections:
// e_shoff, and e_shentsize to e_shstrndx.
func sectionWords(c elf.Class) []span {
	if c == elf.ELFCLASS32 {
		return []span{{0x20, 0x24}, {0x2e, 0x34}}
	}
	return []span{{0x28, 0x30}, {0x3a, 0x40}}
}

// masked reads zeros in some ranges.
type masked struct {
	r    io.ReaderAt
	zero []span
}

func (m masked) ReadAt(b []byte, off int64) (int, error) {
	n, err := m.r.ReadAt(b, off)
	for _, z := range m.zero {
		from, to := max(z.from, off), min(z.to, off+int64(n))
		if from < to {
			clear(b[from-off : to-off])
		}
	}
	return n, err
}

// BuildID is the build ID of an ELF file, nil where it has none.
func BuildID(r io.ReaderAt) ([]byte, error) {
	f, err := Open(r)
	if err != nil {
		return nil, err
	}
	return buildID(f, r), nil
}

func buildID(f *elf.File, r io.ReaderAt) []byte {
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE || p.Filesz > maxNotes {
			continue
		}
		if id := findID(read(p.ReaderAt, p.Filesz), f.ByteOrder, p.Align); id != nil {
			return id
		}
	}
	// A linker script may leave the note out of the segments.
	whole, err := elf.NewFile(r)
	if err != nil {
		return nil
	}
	for _, s := range whole.Sections {
		if s.Type != elf.SHT_NOTE || s.FileSize > maxNotes {
			continue
		}
		if id := findID(read(s.ReaderAt, s.FileSize), f.ByteOrder, s.Addralign); id != nil {
			return id
		}
	}
	return nil
}

func read(r io.ReaderAt, size uint64) []byte {
	b := make([]byte, size)
	n, err := io.ReadFull(io.NewSectionReader(r, 0, int64(size)), b)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return b[:n]
}

const noteBuildID = 3 // NT_GNU_BUILD_ID

// findID goes through a list of notes.
func findID(b []byte, order binary.ByteOrder, align uint64) []byte {
	if align != 8 {
		align = 4
	}
	pad := func(n uint64) uint64 { return (n + align - 1) &^ (align - 1) }
	for len(b) >= 12 {
		name, desc, kind := uint64(order.Uint32(b)), uint64(order.Uint32(b[4:])), order.Uint32(b[8:])
		at := pad(12 + name)
		end := at + desc
		if end > uint64(len(b)) {
			return nil
		}
		if kind == noteBuildID && bytes.Equal(b[12:12+name], []byte("GNU\x00")) && desc > 0 {
			return slices.Clone(b[at:end])
		}
		b = b[min(pad(end), uint64(len(b))):]
	}
	return nil
}

// Same tells whether two files are the same program.
func Same(a, b io.ReaderAt) bool {
	fa, err := Open(a)
	if err != nil {
		return false
	}
	fb, err := Open(b)
	if err != nil {
		return false
	}
	id := buildID(fa, a)
	if id == nil || !bytes.Equal(id, buildID(fb, b)) {
		return false
	}
	if fa.FileHeader != fb.FileHeader || len(fa.Progs) != len(fb.Progs) {
		return false
	}
	loads := 0
	for i, p := range fa.Progs {
		q := fb.Progs[i].ProgHeader
		q.Off = p.Off
		if p.ProgHeader != q {
			return false
		}
		if p.Type == elf.PT_LOAD {
			loads++
		}
	}
	if loads == 0 {
		return false // a kernel module or an object file: not what a process runs
	}
	ra, rb := masked{a, layout(a, fa)}, masked{b, layout(b, fb)}
	for i, p := range fa.Progs {
		if p.Type == elf.PT_LOAD && !equal(ra, rb, p.Off, fb.Progs[i].Off, p.Filesz) {
			return false
		}
	}
	return true
}

// layout are the parts of a file that only say where things lie in it.
func layout(r io.ReaderAt, f *elf.File) []span {
	out := sectionWords(f.Class)
	head := read(r, 64)
	if len(head) < 64 {
		return out
	}
	var table, size, field, width int64
	if f.Class == elf.ELFCLASS32 {
		table, size = int64(f.ByteOrder.Uint32(head[0x1c:])), int64(f.ByteOrder.Uint16(head[0x2a:]))
		field, width = 4, 4
	} else {
		table, size = int64(f.ByteOrder.Uint64(head[0x20:])), int64(f.ByteOrder.Uint16(head[0x36:]))
		field, width = 8, 8
	}
	for i := range int64(len(f.Progs)) {
		at := table + i*size + field
		out = append(out, span{at, at + width})
	}
	return out
}

// equal compares a range of one file with one of another.
func equal(a, b io.ReaderAt, atA, atB, size uint64) bool {
	bufA, bufB := make([]byte, 128<<10), make([]byte, 128<<10)
	for done := uint64(0); done < size; {
		want := min(size-done, uint64(len(bufA)))
		_, errA := io.ReadFull(io.NewSectionReader(a, int64(atA+done), int64(want)), bufA[:want])
		_, errB := io.ReadFull(io.NewSectionReader(b, int64(atB+done), int64(want)), bufB[:want])
		if errA != nil || errB != nil || !bytes.Equal(bufA[:want], bufB[:want]) {
			return false
		}
		done += want
	}
	return true
}
