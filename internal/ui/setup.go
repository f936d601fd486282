package ui

import (
	"strings"

	"github.com/liveupd/liveupd/change"
)

func (j *jsonRenderer) Setup(r *change.SetupReport) {
	c := *r
	c.MessageType = "report"
	c.Kernels, c.Items, c.Commands = list(c.Kernels), list(c.Items), list(c.Commands)
	c.Lacks, c.Warnings, c.Neighbours = list(c.Lacks), list(c.Warnings), list(c.Neighbours)
	j.line(c)
}

// recoversText says what a kernel boots with.
var recoversText = map[string]string{
	"yes": "recovers", "no": "does not recover", "old": "does not recover", "none": "has no initrd", "unknown": "cannot be read",
}

// Setup shows what recovers at boot, what was done or would be, and what lacks.
func (t *text) Setup(r *change.SetupReport) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clear()
	t.printf("%s %s\n", t.paint(bold, "Recovery at boot of"), clean(r.Root))
	if r.Container {
		t.printf("  a container: its host boots the kernel\n")
	}
	for _, k := range r.Kernels {
		name, color := k.Initrd, green
		if name == "" {
			name = k.Kernel
		}
		if k.Recovers != "yes" {
			color = yellow
		}
		t.printf("  %s  %s\n", clean(name), t.paint(color, recoversText[k.Recovers]))
		if k.Detail != "" {
			t.printf("      %s\n", clean(k.Detail))
		}
	}
	color := green
	if r.Unit != "enabled" {
		color = yellow
	}
	t.printf("  liveupd-recover.service  %s\n", t.paint(color, r.Unit))
	if r.Init {
		t.printf("  init=  %s\n", t.paint(green, "liveupd-init"))
	}
	if r.Result == "planned" || r.Result == "nothing-to-do" || t.o.Verbose {
		t.neighbours(r.Neighbours)
	}
	would := map[string]string{"planned": "would be done", "done": "was done", "pending": "was done"}[r.Result]
	if would == "" {
		t.printf("Nothing to do.\n")
	} else {
		t.printf("%s\n", t.paint(bold, "What "+would))
	}
	for _, it := range r.Items {
		if it.Action == "keep" && it.Detail == "" && !t.o.Verbose {
			continue
		}
		t.printf("  %-8s %s\n", it.Action, clean(it.Path))
		if it.Detail != "" {
			t.printf("           %s\n", clean(it.Detail))
		}
		if it.Diff != "" && (r.Result == "planned" || t.o.Verbose) {
			for line := range strings.Lines(it.Diff) {
				t.printf("      %s\n", clean(strings.TrimSuffix(line, "\n")))
			}
		}
	}
	verb := "run"
	if r.Result == "pending" {
		verb = "TO RUN"
	}
	for _, c := range r.Commands {
		t.printf("  %-8s %s\n", verb, clean(c))
	}
	for _, l := range r.Lacks {
		t.printf("%s %s\n", t.paint(yellow, "lacks:"), clean(l))
	}
	for _, w := range r.Warnings {
		t.printf("%s %s\n", t.paint(yellow, "warning:"), cleanLines(w, "  "))
	}
}

// neighbours shows what else updates the root.
func (t *text) neighbours(list []change.Neighbour) {
	if len(list) == 0 {
		return
	}
	t.printf("%s\n", t.paint(bold, "What else updates it"))
	for _, n := range list {
		t.printf("  %s: %s\n", clean(n.Name), clean(n.Now))
		if !n.Laid {
			t.printf("      %s\n", clean(n.Keeps))
		}
		switch {
		case n.Laid:
			t.printf("      %s: it %s\n", t.paint(green, "fitted"), clean(n.Change))
		case n.Change != "":
			t.printf("      with --live-together it %s\n", clean(n.Change))
		}
	}
}
