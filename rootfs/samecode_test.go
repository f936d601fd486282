package rootfs

import (
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
)

// Which entries are marked: those that somebody uses, and that hold the same program.
func TestMarkSameCode(t *testing.T) {
	b, err := os.ReadFile("/usr/bin/true")
	if err != nil {
		t.Skip(err)
	}
	old, signed := string(b), string(b)+"~signature~"
	b[len(b)/2] ^= 0xff
	patched := string(b)
	base := viewOf(t, files{"usr/bin/signed": old, "usr/bin/patched": old, "opt/plugin": old, "opt/unused": old, "usr/bin/script": "#!/bin/sh\n", "usr/bin/link": "-> signed"})
	src := openDir(t, writeTree(t, files{"usr/bin/signed": signed, "usr/bin/patched": patched, "opt/plugin": signed, "opt/unused": signed, "usr/bin/script": "#!/bin/sh\n:\n", "usr/bin/link": signed}))
	file := &change.Node{Type: change.Regular, Size: 1}
	d := &change.Delta{}
	for _, p := range []string{"/opt/plugin", "/opt/unused", "/usr/bin/patched", "/usr/bin/script", "/usr/bin/signed"} {
		d.Entries = append(d.Entries, change.Entry{Path: p, Op: change.Replace, Old: file, New: file, From: p})
	}
	d.Entries = append(d.Entries, change.Entry{Path: "/usr/bin/link", Op: change.Replace, Old: &change.Node{Type: change.Symlink}, New: file, From: "/usr/bin/link"})
	for _, c := range []struct {
		facts change.Facts
		want  []string
	}{
		{change.Facts{Running: true}, nil},
		{change.Facts{Running: true, Hits: []change.Hit{{Path: "/opt/plugin"}, {Path: "/usr/bin/patched"}}}, []string{"/opt/plugin"}},
		{change.Facts{}, []string{"/usr/bin/signed"}},
	} {
		for i := range d.Entries {
			d.Entries[i].SameCode = false
		}
		in := change.Input{Delta: d, Old: &change.Tree{}, New: &change.Tree{}, Facts: &c.facts}
		MarkSameCode(base, Overlay(base, d, src), &in)
		var got []string
		for _, e := range d.Entries {
			if e.SameCode {
				got = append(got, e.Path)
			}
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%+v (-want +got):\n%s", c.facts, diff)
		}
	}
}
