package rootfs

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// elfSpec describes an object to make.
type elfSpec struct {
	machine         elf.Machine // EM_X86_64 when zero
	interp, soname  string
	needed          []string
	rpath, runpath  string
	flags1          elf.DynFlag1
	strtabElsewhere bool // the string table lies outside of all segments
	nameOutside     bool // a name lies outside of the string table
}

// build makes an ELF file without section headers: one PT_LOAD over all, its
// dynamic section and its strings.
func (s elfSpec) build() string {
	if s.machine == 0 {
		s.machine = elf.EM_X86_64
	}
	const base, header, entry = 0x10000, 64, 56
	strs := []byte{0}
	str := func(v string) uint64 {
		at := len(strs)
		strs = append(append(strs, v...), 0)
		return uint64(at)
	}
	type dyn struct {
		tag elf.DynTag
		val uint64
	}
	var dyns []dyn
	for _, n := range s.needed {
		dyns = append(dyns, dyn{elf.DT_NEEDED, str(n)})
	}
	for tag, v := range map[elf.DynTag]string{elf.DT_SONAME: s.soname, elf.DT_RPATH: s.rpath, elf.DT_RUNPATH: s.runpath} {
		if v != "" {
			dyns = append(dyns, dyn{tag, str(v)})
		}
	}
	if s.flags1 != 0 {
		dyns = append(dyns, dyn{elf.DT_FLAGS_1, uint64(s.flags1)})
	}
	if s.nameOutside {
		dyns = append(dyns, dyn{elf.DT_NEEDED, 1 << 40})
	}
	interpAt := uint64(header + 3*entry)
	strsAt := interpAt + uint64(len(s.interp)) + 1
	dynAt := (strsAt + uint64(len(strs)) + 7) &^ 7
	addr := base + strsAt
	if s.strtabElsewhere {
		addr = 1 << 50
	}
	dyns = append(dyns, dyn{elf.DT_STRTAB, addr}, dyn{elf.DT_STRSZ, uint64(len(strs))}, dyn{elf.DT_NULL, 0})
	end := dynAt + uint64(16*len(dyns))

	var b bytes.Buffer
	put := func(v any) { _ = binary.Write(&b, binary.LittleEndian, v) } // a buffer takes all
	hdr := elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_DYN), Machine: uint16(s.machine), Version: 1, Phoff: header, Ehsize: header, Phentsize: entry, Phnum: 3,
	}
	put(hdr)
	put(elf.Prog64{Type: uint32(elf.PT_LOAD), Vaddr: base, Filesz: end, Memsz: end})
	put(elf.Prog64{Type: uint32(elf.PT_DYNAMIC), Off: dynAt, Vaddr: base + dynAt, Filesz: end - dynAt, Memsz: end - dynAt})
	interp := elf.Prog64{Type: uint32(elf.PT_NULL)}
	if s.interp != "" {
		interp = elf.Prog64{Type: uint32(elf.PT_INTERP), Off: interpAt, Filesz: uint64(len(s.interp)) + 1}
	}
	put(interp)
	b.WriteString(s.interp)
	b.WriteByte(0)
	b.Write(strs)
	b.Write(make([]byte, int(dynAt)-b.Len()))
	for _, d := range dyns {
		put(uint64(d.tag))
		put(d.val)
	}
	return b.String()
}

const ldso = "/lib64/ld-linux-x86-64.so.2"

func lib(soname string, needed ...string) string {
	return elfSpec{soname: soname, needed: needed}.build()
}

func program(needed ...string) string { return elfSpec{interp: ldso, needed: needed}.build() }

// withLoader adds the merged-/usr links and a loader.
func withLoader(fs files) files {
	fs["lib"], fs["lib64"], fs["bin"], fs["sbin"] = "-> usr/lib", "-> usr/lib64", "-> usr/bin", "-> usr/sbin"
	fs["usr/lib64/ld-linux-x86-64.so.2"] = "-> ../lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
	fs["usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"] = lib("ld-linux-x86-64.so.2")
	return fs
}

const loaderPaths = "/lib64 /usr/lib64/ld-linux-x86-64.so.2 /usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"

func TestClosure(t *testing.T) {
	const ma = "usr/lib/x86_64-linux-gnu/"
	cases := []struct {
		name        string
		fs          files
		libraryPath string
		want        string // the paths after the loader's own
		warnings    int
	}{
		{
			name: "symlinks on the way, and what a library needs",
			fs: files{
				"usr/bin/p": program("liba.so.1"), ma + "liba.so.1": "-> liba.so.1.2", ma + "liba.so.1.2": lib("liba.so.1", "libb.so"), ma + "libb.so": lib("libb.so"),
			},
			want: "/lib /" + ma + "liba.so.1 /" + ma + "liba.so.1.2 /" + ma + "libb.so",
		},
		{
			name: "ld.so.conf comes before the default folders, includes in order",
			fs: files{
				"usr/bin/p": program("liba.so"), ma + "liba.so": lib("liba.so"), "opt/two/liba.so": lib("liba.so"), "opt/one/liba.so": lib("liba.so"),
				"etc/ld.so.conf": "# first\ninclude ld.so.conf.d/*.conf\n", "etc/ld.so.conf.d/b.conf": "/opt/two\n", "etc/ld.so.conf.d/a.conf": "/opt/one # one\n",
			},
			want: "/opt/one/liba.so",
		},
		{
			name: "RUNPATH with $ORIGIN, for the object itself only",
			fs: files{
				"opt/app/bin/p":        elfSpec{interp: ldso, needed: []string{"liba.so"}, runpath: "$ORIGIN/../lib"}.build(),
				"opt/app/lib/liba.so":  lib("liba.so", "libb.so"),
				"opt/app/lib/libb.so":  lib("libb.so"),
				ma + "libb.so":         lib("libb.so"),
				"usr/bin/p":            "-> /opt/app/bin/p",
				"opt/app/lib64/unused": "",
			},
			want: "/opt/app/lib/liba.so /lib /" + ma + "libb.so",
		},
		{
			name: "RPATH counts for what the libraries need too",
			fs: files{
				"usr/bin/p":     elfSpec{interp: ldso, needed: []string{"liba.so"}, rpath: "/opt/r"}.build(),
				"opt/r/liba.so": lib("liba.so", "libb.so"), "opt/r/libb.so": lib("libb.so"), ma + "libb.so": lib("libb.so"),
			},
			want: "/opt/r/liba.so /opt/r/libb.so",
		},
		{
			name: "RPATH is ignored beside RUNPATH",
			fs: files{
				"usr/bin/p":     elfSpec{interp: ldso, needed: []string{"liba.so"}, rpath: "/opt/r", runpath: "/opt/none"}.build(),
				"opt/r/liba.so": lib("liba.so"), ma + "liba.so": lib("liba.so"),
			},
			want: "/lib /" + ma + "liba.so",
		},
		{
			name:        "LD_LIBRARY_PATH before RUNPATH, after RPATH",
			fs:          files{"usr/bin/p": elfSpec{interp: ldso, needed: []string{"liba.so"}, runpath: "/opt/r"}.build(), "opt/r/liba.so": lib("liba.so"), "opt/l/liba.so": lib("liba.so")},
			libraryPath: "/nowhere:/opt/l",
			want:        "/opt/l/liba.so",
		},
		{
			name: "each variant for better processors, with what it needs",
			fs: files{
				"usr/bin/p": program("liba.so"), ma + "liba.so": lib("liba.so"),
				ma + "glibc-hwcaps/x86-64-v3/liba.so": lib("liba.so", "libv.so"), ma + "glibc-hwcaps/x86-64-v2/liba.so": lib("liba.so"), ma + "libv.so": lib("libv.so"),
			},
			want: "/lib /" + ma + "glibc-hwcaps/x86-64-v2/liba.so /" + ma + "glibc-hwcaps/x86-64-v3/liba.so /" + ma + "liba.so /" + ma + "libv.so",
		},
		{
			name: "an object of another machine is passed over",
			fs: files{
				"usr/bin/p": program("liba.so"), "etc/ld.so.conf": "/opt/arm\n", "opt/arm/liba.so": elfSpec{machine: elf.EM_AARCH64, soname: "liba.so"}.build(),
				"usr/lib/liba.so": lib("liba.so"),
			},
			want: "/lib /usr/lib/liba.so",
		},
		{
			name: "what is no object is passed over",
			fs:   files{"usr/bin/p": program("liba.so"), ma + "liba.so": "INPUT(liba.a)", "usr/lib/liba.so": lib("liba.so")},
			want: "/lib /usr/lib/liba.so",
		},
		{
			name: "a circle ends, a missing library is told",
			fs:   files{"usr/bin/p": program("liba.so", "libgone.so"), "usr/lib/liba.so": lib("liba.so", "libb.so"), "usr/lib/libb.so": lib("libb.so", "liba.so")},
			want: "/lib /usr/lib/liba.so /usr/lib/libb.so", warnings: 1,
		},
		{
			name: "no default folders where the object says so",
			fs: files{
				"usr/bin/p":       elfSpec{interp: ldso, needed: []string{"liba.so"}, flags1: elf.DF_1_NODEFLIB, runpath: "/opt/r"}.build(),
				"usr/lib/liba.so": lib("liba.so"),
			},
			want: "", warnings: 1,
		},
		{
			name: "preloaded for every program",
			fs:   files{"usr/bin/p": program(), "etc/ld.so.preload": "/opt/pre.so # x\n", "opt/pre.so": lib("pre.so")},
			want: "/opt/pre.so",
		},
	}
	for _, c := range cases {
		warn := &warnings{}
		r := newReader(asTree(viewOf(t, withLoader(c.fs))), warn)
		real, err := r.t.Resolve("/usr/bin/p")
		if err != nil {
			real = "/opt/app/bin/p"
		}
		var got []string
		for _, d := range r.closure(real, c.libraryPath, "") {
			got = append(got, d.path)
		}
		want := strings.Fields(loaderPaths + " " + c.want)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
		if len(warn.seen) != c.warnings {
			t.Errorf("%s: warnings %v; want %d", c.name, warn.seen, c.warnings)
		}
	}
}

func TestReadELFOdd(t *testing.T) {
	for name, s := range map[string]elfSpec{
		"strings outside of all segments": {needed: []string{"x"}, strtabElsewhere: true},
		"a name outside of the strings":   {needed: []string{"x"}, nameOutside: true},
	} {
		if o, err := readELF(strings.NewReader(s.build())); err == nil {
			t.Errorf("%s: readELF = %+v; want an error", name, o)
		}
	}
	whole := program("liba.so")
	for n := range len(whole) {
		o, err := readELF(strings.NewReader(whole[:n]))
		if err == nil && slices.Equal(o.needed, []string{"liba.so"}) {
			t.Errorf("readELF of the first %d of %d bytes reads it as whole", n, len(whole))
			break
		}
	}
}

func FuzzReadELF(f *testing.F) {
	f.Add([]byte(program("liba.so", "libb.so")))
	f.Add([]byte(elfSpec{soname: "x", rpath: "$ORIGIN:${LIB}", runpath: "/a"}.build()))
	if b, err := os.ReadFile("/bin/true"); err == nil {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := readELF(bytes.NewReader(b))
		if (o == nil) == (err == nil) {
			t.Errorf("readELF = %v, %v; want one of both", o, err)
		}
	})
}

func FuzzLdConf(f *testing.F) {
	f.Add("include a b\n/x:/y,/z=libc6 # c\nhwcap 0 nosegneg\n\x00/../..")
	f.Fuzz(func(t *testing.T, s string) {
		dirs, includes := parseLdConf([]byte(s))
		for i, d := range dirs {
			if d == "" && includes[i] == "" || d != "" && d[0] != '/' {
				t.Errorf("folder %d is %q, include %q", i, d, includes[i])
			}
		}
	})
}
