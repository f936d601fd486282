package apt

import (
	"slices"
	"testing"

	"github.com/liveupd/liveupd/change"
)

func TestChangedBy(t *testing.T) {
	c := readChanges("10.5 7-1-first\n30.25 9-1-third:amd64\n20.000000001 7-2-sec-ond\nbroken\n40 7-3--x\n41 7-4-$(x)\n", "9.5 /var/lib/a\n10.6 /var/lib/b/x\n20.5 /var/lib/c c\n31 /var/lib\n12 /var/lib/d\n")
	packages := []change.Package{{Name: "first"}, {Name: "sec-ond"}}
	for _, tc := range []struct {
		path      string
		postponed []string
		want      []string
	}{
		{"/var/lib/b/x", nil, []string{"first"}},
		{"/var/lib/c c", nil, []string{"sec-ond"}},
		{"/var/lib/d/gone", nil, []string{"first"}},
		{"/var/lib/gone", nil, []string{"third:amd64"}},
		{"/var/lib/a", nil, nil}, // before any was configured: a preinst
		{"/srv/x", nil, nil},
		// What the first one's empty script cannot have done was the next one's.
		{"/var/lib/b/x", []string{"first"}, []string{"sec-ond"}},
		{"/var/lib/gone", []string{"third:amd64"}, nil},
	} {
		if got := c.By(tc.path, packages, tc.postponed); !slices.Equal(got, tc.want) {
			t.Errorf("%s, postponed %q: by %q; want %q", tc.path, tc.postponed, got, tc.want)
		}
	}
	if got := c.By("/var/lib/a", packages[:1], nil); !slices.Equal(got, []string{"first"}) {
		t.Errorf("of one package alone: by %q", got)
	}
	// dpkg's word of a package comes late, that of its own start never.
	c = readChanges("5 6-0-unpack\n8 7-0-configure\n10.5 7-1-first\n20 7-2-sec-ond\n22 8-0-unpack\n30 9-0-configure\n31 9-1-third\n", "6 /var/lib/a\n9 /var/lib/b\n21 /var/lib/c\n23 /var/lib/d\n30.5 /var/lib/e\n")
	for _, tc := range []struct {
		path      string
		postponed []string
		want      []string
	}{
		{"/var/lib/a", nil, nil}, // unpacked
		{"/var/lib/b", nil, []string{"first"}},
		{"/var/lib/b", []string{"first"}, []string{"sec-ond"}},
		{"/var/lib/b", []string{"first", "sec-ond"}, nil}, // another run's packages cannot have
		{"/var/lib/c", nil, []string{"sec-ond"}},
		{"/var/lib/d", nil, nil},
		{"/var/lib/e", nil, []string{"third"}},
	} {
		if got := c.By(tc.path, packages, tc.postponed); !slices.Equal(got, tc.want) {
			t.Errorf("with runs, %s, postponed %q: by %q; want %q", tc.path, tc.postponed, got, tc.want)
		}
	}
}
