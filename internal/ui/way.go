package ui

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// links say what one link of a way does with the one before.
var links = map[string]string{
	"needed": "needed by", "imports": "imported by", "sources": "sourced by", "shebang": "interpreter of", "executes": "executed by",
	"environment": "environment of", "credential": "credential of", "bind": "mounted into", "root": "root of", "reads": "read by",
	"defines": "defines", "symlink": "leads to", "mapped": "mapped by", "exec": "executed by", "namespace": "in the mounts of",
	"process": "a process of", "propagated": "takes along", "triggered": "hands connections to",
}

// wayText tells the way from what changes to the unit: "/usr/lib/x.so -> needed
// by /usr/sbin/y -> executed by y.service".
func wayText(r change.Reason) string {
	var b strings.Builder
	b.WriteString(cmp.Or(r.Path, r.Unit))
	for _, l := range r.Via {
		who := cmp.Or(l.Path, l.Unit)
		if l.PID != 0 {
			who = fmt.Sprintf("%s (%d)", l.Comm, l.PID)
		}
		fmt.Fprintf(&b, " -> %s %s", cmp.Or(links[l.Kind], l.Kind+" of"), who)
	}
	return clean(b.String())
}
