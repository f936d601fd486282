package trust

import (
	"runtime/debug"
	"sync"
	"time"
)

// BuildTime is the time of the commit that the running program was built from: the same for each
// build of it, and never later than the present. 1970 where the build has no record of it.
func BuildTime() time.Time { return buildTime() }

var buildTime = sync.OnceValue(func() time.Time {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return time.Unix(0, 0)
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.time" {
			if t, err := time.Parse(time.RFC3339, s.Value); err == nil {
				return t
			}
		}
	}
	return time.Unix(0, 0)
})
