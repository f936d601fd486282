package inspect

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// Kernel compares the kernel that runs with the newest one that is installed
// below root; nil where none is, as in a container.
func Kernel(root string) *change.Release {
	running, build := sys.KernelRelease(), sys.KernelVersion()
	installed := map[string]string{} // image by release
	for _, pattern := range []string{"boot/vmlinuz-*", "boot/vmlinux-*", "boot/Image-*", "usr/lib/modules/*/vmlinuz", "lib/modules/*/vmlinuz"} {
		names, _ := filepath.Glob(filepath.Join(root, pattern)) // a well-formed pattern does not fail
		for _, name := range names {
			release := filepath.Base(filepath.Dir(name))
			if base := filepath.Base(name); strings.Contains(base, "-") {
				_, release, _ = strings.Cut(base, "-")
			}
			if !strings.HasSuffix(release, ".old") && !strings.Contains(release, "rescue") {
				installed[release] = name
			}
		}
	}
	if len(installed) == 0 {
		return nil
	}
	r := &change.Release{Running: running, State: "current"}
	for release := range installed {
		// A machine stays with its flavour: generic, cloud, lowlatency.
		if flavour(release) == flavour(running) && (r.Newest == "" || compareReleases(release, r.Newest) > 0) {
			r.Newest = release
		}
	}
	if r.Newest == "" {
		r.State, r.Detail = "unknown", "no kernel of its flavour is installed"
		return r
	}
	switch image, here := installed[running]; {
	case !here && compareReleases(r.Newest, running) <= 0:
		// A kernel that came from elsewhere, as a virtual machine's.
		r.State, r.Detail = "unknown", "the kernel that runs is not installed"
	case r.Newest != running:
		r.State = "newer"
	default:
		text := imageVersion(image)
		// The image says: RELEASE (builder) VERSION, where VERSION is uname -v.
		if text != "" && !strings.HasSuffix(text, build) {
			r.State, r.Detail = "rebuilt", "another build of the same release"
			if i := strings.Index(text, "#"); i >= 0 {
				r.Detail += ": " + text[i:]
			}
		}
	}
	return r
}

// flavour is what of a release is no version: cloud-amd64 of 6.1.0-18-cloud-amd64.
func flavour(release string) string {
	var words []string
	for field := range strings.SplitSeq(release, "-") {
		if field != "" && (field[0] < '0' || field[0] > '9') && !strings.HasPrefix(field, "rc") {
			words = append(words, field)
		}
	}
	return strings.Join(words, "-")
}

// compareReleases orders kernel releases as versions: runs of digits as numbers,
// and what follows a common start with a tilde or "-rc" before its end.
func compareReleases(a, b string) int {
	for a != "" || b != "" {
		var x, y string
		x, a = run1(a)
		y, b = run1(b)
		m, errX := strconv.ParseUint(x, 10, 64)
		n, errY := strconv.ParseUint(y, 10, 64)
		switch {
		case errX == nil && errY == nil && m != n:
			if m < n {
				return -1
			}
			return 1
		case errX == nil && errY == nil:
		case x != y:
			if early(x) != early(y) {
				if early(x) {
					return -1
				}
				return 1
			}
			return strings.Compare(x, y)
		}
	}
	return 0
}

func early(s string) bool { return strings.HasPrefix(s, "-rc") || strings.HasPrefix(s, "~") }

// run1 cuts off the first run of digits, or of other characters.
func run1(s string) (first, rest string) {
	digit := func(c byte) bool { return c >= '0' && c <= '9' }
	i := 0
	for i < len(s) && digit(s[i]) == digit(s[0]) {
		i++
	}
	return s[:i], s[i:]
}

// imageVersion reads what a kernel image of the x86 boot protocol says of itself
// (Documentation/arch/x86/boot.rst: kernel_version at 0x20e, relative to 0x200); ""
// for others.
func imageVersion(name string) string {
	f, err := os.Open(name)
	if err != nil {
		return ""
	}
	defer f.Close()
	var head [0x210]byte
	if _, err := io.ReadFull(f, head[:]); err != nil || string(head[0x202:0x206]) != "HdrS" {
		return ""
	}
	at := int64(binary.LittleEndian.Uint16(head[0x20e:]))
	if at == 0 {
		return ""
	}
	text := make([]byte, 512)
	n, err := f.ReadAt(text, at+0x200)
	if err != nil && n == 0 {
		return ""
	}
	text, _, found := bytes.Cut(text[:n], []byte{0})
	if !found {
		return ""
	}
	return string(text)
}

// Microcode compares the revision that the processor runs with the one that is
// installed for it below root; nil where the processor is of another make than
// Intel, or hides it as in a virtual machine.
func Microcode(root string) *change.Release {
	cpuinfo, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return nil
	}
	flags, err := os.ReadFile("/sys/devices/system/cpu/cpu0/microcode/processor_flags")
	if err != nil {
		return nil
	}
	cpu, ok := parseCPU(cpuinfo)
	if !ok {
		return nil
	}
	mask, err := strconv.ParseUint(strings.TrimSpace(string(flags)), 0, 32)
	if err != nil {
		return nil
	}
	r := &change.Release{Running: hex(cpu.revision), State: "unknown"}
	var newest uint32
	for _, dir := range []string{"usr/lib/firmware/intel-ucode", "lib/firmware/intel-ucode"} {
		b, err := os.ReadFile(filepath.Join(root, dir, cpu.file()))
		if err == nil {
			newest = max(newest, intelRevision(b, cpu.signature(), uint32(mask)))
		}
	}
	if newest > 0 {
		r.Newest, r.State = hex(newest), "current"
		if newest > cpu.revision {
			r.State = "newer"
		}
	}
	return r
}

func hex(n uint32) string { return "0x" + strconv.FormatUint(uint64(n), 16) }

type cpu struct{ family, model, stepping, revision uint32 }

// file is the name that the kernel looks for.
func (c cpu) file() string {
	two := func(n uint32) string {
		s := strconv.FormatUint(uint64(n), 16)
		if len(s) < 2 {
			s = "0" + s
		}
		return s
	}
	return two(c.family) + "-" + two(c.model) + "-" + two(c.stepping)
}

// signature is what CPUID leaf 1 gives in EAX.
func (c cpu) signature() uint32 {
	base, extended := c.family, uint32(0)
	if c.family > 15 {
		base, extended = 15, c.family-15
	}
	return c.stepping | c.model&0xf<<4 | base<<8 | c.model>>4<<16 | extended<<20
}

// parseCPU reads the first processor of /proc/cpuinfo; ok is false where it is none of
// Intel's or has no revision.
func parseCPU(text []byte) (c cpu, ok bool) {
	first, _, _ := strings.Cut(string(text), "\n\n")
	values := map[string]string{}
	for line := range strings.Lines(first) {
		k, v, _ := strings.Cut(line, ":")
		values[strings.TrimSpace(k)] = strings.TrimSpace(v)
	}
	if values["vendor_id"] != "GenuineIntel" || slices.Contains(strings.Fields(values["flags"]), "hypervisor") {
		return c, false
	}
	for _, f := range []struct {
		key  string
		into *uint32
	}{{"cpu family", &c.family}, {"model", &c.model}, {"stepping", &c.stepping}, {"microcode", &c.revision}} {
		n, err := strconv.ParseUint(values[f.key], 0, 32)
		if err != nil {
			return c, false
		}
		*f.into = uint32(n)
	}
	return c, true
}

// intelRevision is the newest update for a processor in a file of updates (Intel SDM
// volume 3A, 11.11.1, "Microcode Update"), 0 where there is none.
func intelRevision(b []byte, signature, flags uint32) uint32 {
	word := func(at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }
	var newest uint32
	for len(b) >= 48 && word(0) == 1 {
		data, total := int(word(28)), int(word(32))
		if data == 0 {
			data, total = 2000, 2048
		}
		if total < 48 || total > len(b) || data < 0 || data > total-48 {
			break
		}
		match := word(12) == signature && (word(24)&flags != 0 || word(24) == 0 && flags == 0)
		// Further signatures follow the data.
		if at := 48 + data; !match && at+20 <= total {
			for i := range min(int(word(at)), (total-at-20)/12) {
				e := at + 20 + 12*i
				match = match || word(e) == signature && word(e+4)&flags != 0
			}
		}
		if match {
			newest = max(newest, word(4))
		}
		b = b[total:]
	}
	return newest
}
