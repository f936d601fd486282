// Command liveupd-recover finishes or undoes an update that a crash cut short.
//
// It is small, static and needs nothing but the file systems themselves, /proc
// and the journal in .liveupd: no libc, no systemd, no network, no source. So it
// runs from the initrd before the root is switched to, the only place that is
// safe against a half-replaced libc or systemd, and by hand.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/journal"
	"github.com/liveupd/liveupd/internal/sys"
	"github.com/liveupd/liveupd/transact"
)

const usage = `usage: liveupd-recover --root DIR [--json] [--again] [--boot [--late]]
       liveupd-recover --journal-version

Finishes or undoes the update of the tree at DIR that a crash cut short. The
file systems mounted below DIR that hold a part of it must be mounted and
writable. Running it twice changes nothing. The result is one line on stdout.

  --again            try again what was tried three times and did not end
  --boot             before the tree is used: make writable what is read-only, do
                     nothing unless the exchange was cut, put the flags back, and tell
                     the console what a person has to do
  --late             with --boot, in a unit of the booted system: if PID 1 came from
                     a tree that was half old and half new, boot anew
  --journal-version  print the versions of the journal that this program reads

As init= of the kernel, by the name liveupd-init, it recovers the root and then
executes the real init.

EXIT STATUS
  0  done, or nothing to do: the tree is wholly old or wholly new
  1  failed; run it again
  2  usage
  4  done for the file systems that are mounted; another is still missing
  5  another liveupd works on this tree
  7  recovery needs a person
`

// result is the --json line, a report as liveupd's.
type result struct {
	change.Report
	Found   string   `json:"found"`
	Tree    string   `json:"tree"`
	Missing []string `json:"missing,omitempty"`
}

func main() {
	if filepath.Base(os.Args[0]) == initName && os.Getpid() == 1 {
		os.Exit(beInit(os.Args[1:]))
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	fs := flag.NewFlagSet("liveupd-recover", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	root := fs.String("root", "", "the tree to recover")
	asJSON := fs.Bool("json", false, "print one JSON line")
	again := fs.Bool("again", false, "")
	boot := fs.Bool("boot", false, "")
	late := fs.Bool("late", false, "")
	version := fs.Bool("journal-version", false, "")
	err := fs.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(stdout, usage)
		return 0
	}
	if err == nil && fs.NArg() > 0 {
		err = fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	if err == nil && *version {
		fmt.Fprintln(stdout, journal.Version)
		return 0
	}
	if err == nil && *root == "" {
		err = errors.New("--root is missing")
	}
	if err == nil && *late && !*boot {
		err = errors.New("--late goes with --boot")
	}
	if err != nil {
		fmt.Fprintf(stderr, "liveupd-recover: %v\n%s", err, usage)
		return 2
	}
	var rec recovered
	switch {
	case *boot && off():
		fmt.Fprintln(stderr, "liveupd-recover: liveupd.recover=0: nothing is recovered")
	case *boot:
		rec, err = atBoot(*root, *again, stderr)
	default:
		rec, err = recoverTree(*root, *again)
	}
	warnings(stderr, rec)
	if err != nil && *boot {
		person(stderr, *root, *late, rec, err)
	} else if err != nil {
		fmt.Fprintf(stderr, "liveupd-recover: %v\n", err)
		if hint, ok := errors.AsType[*change.HintError](err); ok {
			fmt.Fprintf(stderr, "hint: %s\n", hint.Hint)
		}
	}
	if *asJSON {
		if jerr := json.NewEncoder(stdout).Encode(change.Escaped(report(rec, err))); jerr != nil {
			fmt.Fprintf(stderr, "liveupd-recover: cannot write the report: %v\n", jerr)
			return 1
		}
	} else if err == nil && (!*boot || rec.ID != "" || *again) {
		fmt.Fprintln(stdout, sentence(*root, rec))
	}
	if *boot && err == nil && rec.Did != "" {
		return code(rec, booted(rec, *late, stderr))
	}
	return code(rec, err)
}

// booted does what follows a recovery at boot.
func booted(rec recovered, late bool, stderr io.Writer) error {
	var err error
	switch {
	case !late:
		// Without the note the unit takes PID 1's tree for a mixed one, and boots once more.
		if err := writeNote(bootNote, rec.ID); err != nil {
			fmt.Fprintf(stderr, "liveupd-recover: %v\n", err)
		}
	case mixed(rec):
		err = startAnew(rec.ID, stderr)
	}
	if err != nil {
		fmt.Fprintf(stderr, "liveupd-recover: %v\n", err)
	}
	return err
}

func warnings(stderr io.Writer, rec recovered) {
	for _, w := range rec.Warnings {
		fmt.Fprintf(stderr, "liveupd-recover: %s\n", w)
	}
}

// code maps the outcome to the exit status.
func code(rec recovered, err error) int {
	switch {
	case errors.Is(err, change.ErrNeedsPerson):
		return 7
	case errors.Is(err, change.ErrLocked):
		return 5
	case err != nil:
		return 1
	case len(rec.Missing) > 0:
		return 4
	}
	return 0
}

func report(rec recovered, err error) result {
	r := result{Found: rec.Found, Tree: rec.Tree, Missing: rec.Missing}
	r.MessageType, r.Schema, r.Verb, r.ID = "report", 1, "recover", rec.ID
	r.Steps, r.Warnings = []change.StepResult{}, append([]string{}, rec.Warnings...)
	r.Result = "nothing-to-do"
	switch {
	case err != nil:
		r.Result, r.Error = "failed", err.Error()
		if hint, ok := errors.AsType[*change.HintError](err); ok {
			r.Hint = hint.Hint
		}
	case rec.Did == "reversed":
		r.Result = "rolled-back"
	case rec.Did == "removed":
		r.Result = "undone"
	case rec.Pending || len(rec.Missing) > 0:
		r.Result = "pending"
	case rec.Did != "":
		r.Result = "done"
	}
	return r
}

func sentence(root string, rec recovered) string {
	var s string
	switch {
	case rec.ID == "":
		s = fmt.Sprintf("%s: nothing to recover", root)
	case rec.Did == "finished":
		s = fmt.Sprintf("%s: the new tree: transaction %s was finished", root, rec.ID)
	case rec.Did == "reversed":
		s = fmt.Sprintf("%s: the old tree: transaction %s was taken back", root, rec.ID)
	case rec.Did == "removed":
		s = fmt.Sprintf("%s: the old tree: the staging of transaction %s was removed", root, rec.ID)
	default:
		s = fmt.Sprintf("%s: the new tree: transaction %s is in place, its units are still to be restarted", root, rec.ID)
	}
	if len(rec.Missing) > 0 {
		s += "; still to be recovered: " + strings.Join(rec.Missing, ", ")
	}
	return s
}

func recoverTree(root string, again bool) (rec recovered, err error) {
	vols, err := volumes(root)
	if err != nil {
		return rec, err
	}
	defer func() {
		for _, v := range vols {
			v.Dir.Close()
		}
	}()
	// Open would make the store's folder where there is none.
	if _, err := os.Lstat(filepath.Join(root, transact.Dir)); errors.Is(err, os.ErrNotExist) {
		return rec, nil
	}
	return recoverVolumes(vols, again)
}

// volumes opens the tree and each file system mounted below it that holds a
// .liveupd. Only the topmost mount of a place counts; the journal's random
// transaction name proves that a volume is the right one.
func volumes(root string) ([]transact.Volume, error) {
	abs, err := filepath.Abs(root)
	if err == nil {
		abs, err = filepath.EvalSymlinks(abs)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot open %s: %w", root, err)
	}
	dir, err := sys.OpenRoot(abs)
	if err != nil {
		return nil, fmt.Errorf("cannot open %s: %w", root, err)
	}
	vols := []transact.Volume{{Mount: "/", Dir: dir}}
	mounts, err := sys.ReadMountinfo("/proc/self/mountinfo")
	if err != nil {
		dir.Close()
		return nil, fmt.Errorf("cannot find the file systems below %s: %w", root, err)
	}
	var below []string
	prefix := strings.TrimSuffix(abs, "/") + "/"
	for _, m := range mounts {
		if strings.HasPrefix(m.Point, prefix) && !slices.Contains(below, m.Point) {
			below = append(below, m.Point)
		}
	}
	for _, point := range below {
		if _, err := os.Lstat(path.Join(point, transact.Dir)); err != nil {
			continue
		}
		sub, err := sys.OpenRoot(point)
		if err != nil {
			continue // unmounted meanwhile, or covered by another mount
		}
		vols = append(vols, transact.Volume{Mount: "/" + strings.TrimPrefix(point, prefix), Dir: sub})
	}
	return vols, nil
}
