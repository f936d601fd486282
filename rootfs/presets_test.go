package rootfs

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPresets(t *testing.T) {
	tree := load(t, viewOf(t, map[string]string{
		"usr/lib/systemd/system-preset/90-a.preset": "# none\nenable a.service\n\ndisable *\n",
		"usr/lib/systemd/system-preset/50-b.preset": "enable hidden.service\n",
		"etc/systemd/system-preset/50-b.preset":     "enable b@.service x y\nfrobnicate c\n",
		"usr/lib/systemd/system-preset/10-c.conf":   "enable no.service\n",
	}), LoadOptions{})
	var got []string
	for _, p := range tree.Presets {
		got = append(got, strings.Join(append([]string{p.Do, p.Pattern}, p.Instances...), " "))
	}
	if d := cmp.Diff([]string{"enable b@.service x y", "enable a.service", "disable *"}, got); d != "" {
		t.Errorf("presets (-want +got):\n%s", d)
	}
}
