package sys

import (
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// OnOverlay tells whether dir lies on an overlay.
func OnOverlay(dir *FD) (bool, error) {
	st, err := fstatfs(dir)
	runtime.KeepAlive(dir)
	return int64(st.Type) == unix.OVERLAYFS_SUPER_MAGIC, err
}

// OverlayRedirects tells whether the overlay that dir lies on can move folders of
// its lower layers: redirect_dir=on, which mountinfo has where it differs from the
// module's default.
func OverlayRedirects(dir *FD) (bool, error) {
	n, err := dir.Stat()
	if err != nil {
		return false, err
	}
	mounts, err := ReadMountinfo("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	// By the device: our copy of the mount is not listed, another one of it is.
	for _, m := range mounts {
		if m.FSType != "overlay" || m.Dev != n.Dev {
			continue
		}
		for opt := range strings.SplitSeq(m.SuperOptions, ",") {
			if val, ok := strings.CutPrefix(opt, "redirect_dir="); ok {
				return val == "on", nil
			}
		}
		def, err := os.ReadFile("/sys/module/overlay/parameters/redirect_dir")
		return err == nil && strings.HasPrefix(string(def), "Y"), nil
	}
	return false, nil
}
