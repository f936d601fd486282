package rootfs

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/liveupd/liveupd/internal/elfcode"
)

// object is what ld.so reads of an ELF file before it loads it.
type object struct {
	class   elf.Class
	machine elf.Machine
	interp  string
	soname  string
	needed  []string
	rpath   []string
	runpath []string
	noDef   bool // DF_1_NODEFLIB: default folders are not searched
	dynamic bool
}

// maxDynamic bounds the dynamic section and its string table, in bytes; the
// largest libraries have a string table of some 20 MB.
const maxDynamic = 64 << 20

// readELF reads an object as ld.so does, by its program headers: section
// headers may be stripped, and may lie.
func readELF(r io.ReaderAt) (o *object, err error) {
	f, err := elfcode.Open(r)
	if err != nil {
		return nil, err
	}
	o = &object{class: f.Class, machine: f.Machine}
	for _, p := range f.Progs {
		switch p.Type {
		case elf.PT_INTERP:
			b, err := segment(p, 4096)
			if err != nil {
				return nil, err
			}
			o.interp = cString(b)
		case elf.PT_DYNAMIC:
			o.dynamic = true
			b, err := segment(p, maxDynamic)
			if err != nil {
				return nil, err
			}
			if err := o.readDynamic(f, b); err != nil {
				return nil, err
			}
		}
	}
	return o, nil
}

func segment(p *elf.Prog, limit uint64) ([]byte, error) {
	if p.Filesz > limit {
		return nil, fmt.Errorf("cannot read ELF segment %s: its %d bytes are above the limit", p.Type, p.Filesz)
	}
	b, err := io.ReadAll(io.NewSectionReader(p.ReaderAt, 0, int64(p.Filesz)))
	if err == nil && uint64(len(b)) < p.Filesz {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read ELF segment %s: %w", p.Type, err)
	}
	return b, nil
}

func (o *object) readDynamic(f *elf.File, b []byte) error {
	word := 8
	if f.Class == elf.ELFCLASS32 {
		word = 4
	}
	number := func(b []byte) uint64 {
		if word == 4 {
			return uint64(f.ByteOrder.Uint32(b))
		}
		return f.ByteOrder.Uint64(b)
	}
	type entry struct {
		tag elf.DynTag
		val uint64
	}
	var names []entry
	var strtab, strsz uint64
	for ; len(b) >= 2*word; b = b[2*word:] {
		e := entry{elf.DynTag(number(b)), number(b[word:])}
		switch e.tag {
		case elf.DT_NULL:
			b = b[:2*word] // ends the loop
		case elf.DT_STRTAB:
			strtab = e.val
		case elf.DT_STRSZ:
			strsz = e.val
		case elf.DT_FLAGS_1:
			o.noDef = elf.DynFlag1(e.val)&elf.DF_1_NODEFLIB != 0
		case elf.DT_NEEDED, elf.DT_SONAME, elf.DT_RPATH, elf.DT_RUNPATH:
			names = append(names, e)
		}
	}
	if len(names) == 0 {
		return nil
	}
	table, err := stringTable(f, strtab, strsz)
	if err != nil {
		return err
	}
	for _, e := range names {
		if e.val >= uint64(len(table)) {
			return fmt.Errorf("cannot read ELF dynamic section: a name lies outside of the string table")
		}
		s := cString(table[e.val:])
		switch e.tag {
		case elf.DT_NEEDED:
			o.needed = append(o.needed, s)
		case elf.DT_SONAME:
			o.soname = s
		case elf.DT_RPATH:
			o.rpath = strings.Split(s, ":")
		case elf.DT_RUNPATH:
			o.runpath = strings.Split(s, ":")
		}
	}
	return nil
}

// stringTable reads the dynamic strings at a virtual address.
func stringTable(f *elf.File, addr, size uint64) ([]byte, error) {
	if size > maxDynamic {
		return nil, fmt.Errorf("cannot read ELF string table: its %d bytes are above the limit", size)
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_LOAD || addr < p.Vaddr || addr-p.Vaddr >= p.Filesz {
			continue
		}
		size = min(size, p.Filesz-(addr-p.Vaddr))
		b, err := io.ReadAll(io.NewSectionReader(p.ReaderAt, int64(addr-p.Vaddr), int64(size)))
		if err == nil && uint64(len(b)) < size {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read ELF string table: %w", err)
		}
		return b, nil
	}
	return nil, errors.New("cannot read ELF string table: no segment holds it")
}

func cString(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	return string(b)
}

// multiarch names the library folder of a machine as Debian does; "" where
// there is no such name.
func (o *object) multiarch() string {
	switch o.machine {
	case elf.EM_X86_64:
		if o.class == elf.ELFCLASS32 {
			return "x86_64-linux-gnux32"
		}
		return "x86_64-linux-gnu"
	case elf.EM_386:
		return "i386-linux-gnu"
	case elf.EM_AARCH64:
		return "aarch64-linux-gnu"
	case elf.EM_ARM:
		return "arm-linux-gnueabihf"
	case elf.EM_RISCV:
		return "riscv64-linux-gnu"
	case elf.EM_PPC64:
		return "powerpc64le-linux-gnu"
	case elf.EM_S390:
		return "s390x-linux-gnu"
	case elf.EM_LOONGARCH:
		return "loongarch64-linux-gnu"
	case elf.EM_MIPS:
		return "mips64el-linux-gnuabi64"
	}
	return ""
}

// libFolder is where the machine's C library lies.
func (o *object) libFolder() string { return "lib/" + o.multiarch() }
