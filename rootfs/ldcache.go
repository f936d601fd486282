package rootfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
)

// cacheEntry is one line of ldconfig -p.
type cacheEntry struct {
	path  string
	level string // the subfolder of glibc-hwcaps that it stands in, "" for none
}

// The layout of /etc/ld.so.cache is glibc's sysdeps/generic/dl-cache.h: a
// header of 48 bytes, entries of 24, their strings, and an extension that
// names the glibc-hwcaps. Offsets of strings count from the header. Before
// glibc 2.32 an older cache of libc5's days came first, which is passed over.
const (
	cacheMagic     = "glibc-ld.so.cache1.1"
	oldCacheMagic  = "ld.so-1.7.0\x00"
	cacheHeader    = 48
	cacheEntrySize = 24
	extensionMagic = 0xeaa42174
	extensionCaps  = 1       // the section that lists glibc-hwcaps
	hwcapExtension = 1 << 62 // an entry's hwcap is an index into that list
	maxCacheCaps   = 1 << 10
)

var errNoCache = errors.New("no cache of libraries in a format that ld.so reads")

// parseLdCache reads a cache: the entries of each name, in their order.
func parseLdCache(b []byte) (map[string][]cacheEntry, error) {
	if bytes.HasPrefix(b, []byte(oldCacheMagic)) {
		i := bytes.Index(b, []byte(cacheMagic))
		if i < 0 {
			return nil, errNoCache
		}
		b = b[i:]
	}
	if len(b) < cacheHeader || !bytes.HasPrefix(b, []byte(cacheMagic)) {
		return nil, errNoCache
	}
	var order binary.ByteOrder = binary.LittleEndian
	if b[28]&3 == 3 { // cache_file_new_flags_endian_big
		order = binary.BigEndian
	}
	count := uint64(order.Uint32(b[20:]))
	if count > uint64(len(b)-cacheHeader)/cacheEntrySize {
		return nil, errNoCache
	}
	text := func(at uint32) string {
		if uint64(at) >= uint64(len(b)) {
			return ""
		}
		return cString(b[at:])
	}
	caps := cacheCaps(b, order, text)
	out := make(map[string][]cacheEntry, count)
	for i := range count {
		e := b[cacheHeader+i*cacheEntrySize:]
		name, p := text(order.Uint32(e[4:])), text(order.Uint32(e[8:]))
		if name == "" || !strings.HasPrefix(p, "/") {
			continue
		}
		entry := cacheEntry{path: p}
		switch hwcap := order.Uint64(e[16:]); {
		case hwcap&hwcapExtension != 0:
			if n := hwcap &^ hwcapExtension & 0xffffffff; n < uint64(len(caps)) {
				entry.level = caps[n]
			} else {
				continue
			}
		case hwcap != 0:
			continue // a folder for old processors' features, which glibc 2.37 no longer reads
		}
		out[name] = append(out[name], entry)
	}
	return out, nil
}

// cacheCaps reads the names of the glibc-hwcaps that entries refer to.
func cacheCaps(b []byte, order binary.ByteOrder, text func(uint32) string) []string {
	at := uint64(order.Uint32(b[32:]))
	if at == 0 || at+8 > uint64(len(b)) || order.Uint32(b[at:]) != extensionMagic {
		return nil
	}
	sections := b[at+8:]
	for range order.Uint32(b[at+4:]) {
		if len(sections) < 16 {
			return nil
		}
		tag, from, size := order.Uint32(sections), uint64(order.Uint32(sections[8:])), uint64(order.Uint32(sections[12:]))
		sections = sections[16:]
		if tag != extensionCaps || from+size > uint64(len(b)) || size/4 > maxCacheCaps {
			continue
		}
		var caps []string
		for i := uint64(0); i+4 <= size; i += 4 {
			caps = append(caps, text(order.Uint32(b[from+i:])))
		}
		return caps
	}
	return nil
}

// cached are the entries of the root's cache; nil where ld.so would find none,
// or where the cache is to be made anew: a changed ld.so.conf without a changed
// cache takes effect with the next run of ldconfig, and what it will lead to
// is what counts.
func (r *reader) cached() map[string][]cacheEntry {
	return r.caches.get("", func() map[string][]cacheEntry {
		if r.confChanges() {
			return nil
		}
		b, err := r.t.ReadFile("/etc/ld.so.cache")
		if err != nil {
			r.warn.absent(err, "read", r.prefix+"/etc/ld.so.cache")
			return nil
		}
		entries, err := parseLdCache(b)
		if err != nil {
			r.warn.add("cannot read %s: %v", r.prefix+"/etc/ld.so.cache", err)
		}
		return entries
	})
}

// confChanges tells whether this is the tree of an update that changes
// ld.so.conf, or what it includes, and not the cache.
func (r *reader) confChanges() bool {
	if r.overlay == nil || r.overlay.entries[r.prefix+"/etc/ld.so.cache"] != nil {
		return false
	}
	for p := range r.overlay.entries {
		if strings.HasPrefix(p, r.prefix+"/etc/ld.so.conf") {
			return true
		}
	}
	return false
}

// fromCache enters what the cache has for a name: of the variants for better
// processors the best that this machine can run, all where that is not known.
func (r *reader) fromCache(name string, by *loadedObject, enter func(string, *loadedObject) bool) bool {
	entries := r.cached()[name]
	if r.levels != nil {
		for _, level := range r.levels {
			for _, e := range entries {
				if e.level == level && enter(e.path, by) {
					return true
				}
			}
		}
	}
	found := false
	for _, e := range entries {
		if e.level != "" && r.levels == nil {
			found = enter(e.path, by) || found
		}
	}
	for _, e := range entries {
		if e.level == "" && enter(e.path, by) {
			return true
		}
	}
	return found
}

// usable are the variants of a library folder that this machine would look
// into, best first; all of them where that is not known.
func (r *reader) usable(dir string) (variants []string, first bool) {
	all := r.hwcaps(dir)
	if r.levels == nil {
		return all, false
	}
	for _, level := range r.levels {
		if p := join(dir, "glibc-hwcaps/"+level); slices.Contains(all, p) {
			variants = append(variants, p)
		}
	}
	return variants, true
}
