package engine

import (
	"fmt"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/transact"
)

// CacheMax is how much sandboxes leave on the disk for the next run, in bytes, where the
// request does not say. A plan of a whole distribution's upgrade leaves 300 MB to 900 MB.
const CacheMax = 1 << 30

// cacheKinds say what the folders of sandboxes are, the first to go first: what a plan made
// is of use for an hour, packages until they are installed, lists for long.
var cacheKinds = []struct{ name, what string }{
	{workDirName, "what a plan prepared for its apply"},
	{"archives", "packages"},
	{"lists", "package lists"},
}

// Caches lists what sandboxes of a root keep on the disk; what cannot be looked at is left out.
func Caches(root string) []change.Cache {
	req, err := normalize(Request{Verb: "status", Root: root})
	if err != nil {
		return nil
	}
	s, err := openSession(&Engine{}, req, readOnly)
	if err != nil {
		return nil
	}
	defer s.close()
	return s.caches()
}

func (s *session) caches() []change.Cache {
	var out []change.Cache
	for _, home := range s.openHomes() {
		for _, kind := range cacheKinds {
			if n, err := sys.DiskUsage(home, kind.name); err == nil && n > 0 {
				out = append(out, change.Cache{Name: kind.name, What: kind.what, Bytes: n})
			}
		}
		home.Close()
	}
	return out
}

// openHomes opens the folders of sandboxes that are there: on the root's file system, and
// for a root that could not be written to where a running system keeps caches.
func (s *session) openHomes() []*sys.FD {
	var out []*sys.FD
	if home, err := sys.OpenDirAt(s.vols[0].Dir, transact.Dir+"/"+workName); err == nil {
		out = append(out, home)
	}
	for _, name := range s.cacheHomes() {
		if home, err := openPrivate(name); err == nil {
			out = append(out, home)
		}
	}
	return out
}

// boundCaches removes what is over the bound.
func (s *session) boundCaches() error {
	most := s.req.CacheMax
	switch {
	case most == 0:
		most = CacheMax
	case most < 0:
		most = 0
	}
	for _, kind := range cacheKinds {
		var sum int64
		for _, c := range s.caches() {
			sum += c.Bytes
		}
		if sum <= most {
			return nil
		}
		if err := s.dropCaches(kind.name); err != nil {
			return err
		}
		if kind.name == workDirName {
			s.warnings = append(s.warnings, fmt.Sprintf(
				"what this plan prepared is not kept for the apply: with packages and their lists it is %d MB, and cache_max is %d MB", sum>>20, most>>20))
		}
	}
	return nil
}
