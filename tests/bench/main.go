// Command bench measures liveupd against the tools that copy and compare trees without its
// guarantees, on an ext4 file system of its own, on this machine.
//
//  1. apply: 5,000 changed files of 200 MB in all, against `cp -a` of the same files plus
//     syncfs (sync -f), and against `rsync -a`, which makes nothing durable. Each run
//     starts from a fresh copy of the root; the runs of the contenders alternate; the
//     source is in the page cache for all. The swap window is what liveupd reports.
//  2. plan with nothing to do: a root of 100,000 files and an equal source tree,
//     against `rsync -an` of the same two trees and `git status` of the root. Cold: page,
//     inode and dentry caches are dropped before each run. Warm: after a run of its own.
//  3. what safety costs: the same apply with and without its barriers, idle and beside a
//     busy writer; the recovery from half a swap, by the number of files.
//  4. verify: a root of 100,000 files against its record, by the index and reading all
//     (--full), against `sha256sum` of the same files by as many processes as there are
//     processors. Cold and warm as for the plan.
//  5. scan: who runs old code, in a booted machine with 100, 500 and 2,000 processes of some
//     350 maps in 20, 100 and 400 units, against needrestart and checkrestart in the same
//     state, while nobody and while everybody runs old code; and a plan for 10 to 10,000
//     changed paths there, with the memory of each.
//  6. apt: a whole upgrade of a Debian root, against apt-get dist-upgrade of a copy, with
//     the disk's flushes and bytes.
//  7. patch: one between those two states, against zstd --patch-from and xdelta3 of whole archives.
//  8. night: what clients of nginx, exim4 and ssh see of a whole upgrade of their machine, beside
//     unattended-upgrades with needrestart.
//  9. peak memory: the greatest resident set of the process and of all its children.
//
// Figures are medians; beside them stand the least and the greatest. Before the next
// contender starts, all is written back, and after each apply every file is compared with the
// source: a run that did not do the work does not count as a fast one.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) > 2 && os.Args[1] == frameVerb {
		os.Exit(frame(os.Args[2], os.Args[3:]))
	}
	if len(os.Args) > 1 && os.Args[1] == clientsVerb {
		if err := clients(); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) > 1 && os.Args[1] == insideVerb {
		if err := inside(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	liveupd := flag.String("liveupd", "bin/liveupd", "the program to measure")
	runs := flag.Int("runs", 7, "how often each is run")
	changed := flag.Int("changed", 5000, "files that an apply changes")
	size := flag.Int64("bytes", 200<<20, "their size in all")
	files := flag.Int("files", 100000, "files of the root whose plan is empty")
	cache := flag.String("cache", "/var/cache/liveupd", "where the file system's image lies")
	roots := flag.String("roots", "/var/cache/liveupd/roots", "where the cached Debian roots lie")
	only := flag.String("only", "", "one part alone: "+strings.Join(partNames, ", "))
	asJSON := flag.Bool("json", false, "print the figures as JSON")
	flag.Parse()
	// An interrupt ends the running command; the file system goes all the same.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, sizes{*liveupd, *runs, *changed, *files, *size, *cache, *roots}, *only, *asJSON); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// partNames are what -only takes, in the order in which they run.
var partNames = []string{"apply", "plan", "barriers", "recovery", "verify", "unpack", "scan", "apt", "patch", "night"}

// sizes are what is measured and how large.
type sizes struct {
	liveupd string
	runs    int
	changed int
	files   int
	bytes   int64
	cache   string
	roots   string // where the cached Debian roots lie
}

func run(ctx context.Context, z sizes, only string, asJSON bool) (err error) {
	if only != "" && !slices.Contains(partNames, only) {
		return fmt.Errorf("there is no part %q, only %s", only, strings.Join(partNames, ", "))
	}
	if os.Geteuid() != 0 {
		return errors.New("needs root: it mounts a file system and drops caches")
	}
	program, err := filepath.Abs(z.liveupd)
	if err != nil {
		return err
	}
	if _, err := os.Stat(program); err != nil {
		return fmt.Errorf("cannot measure liveupd: %w (run make build)", err)
	}
	disk, err := newDisk(z.cache, 4*z.bytes+int64(z.files)*3*4096+2<<30)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, disk.Close()) }()
	b := &bench{ctx: ctx, liveupd: program, runs: z.runs, dir: disk.Mount}
	parts := map[string]func() error{
		"apply":    func() error { return b.apply(z.changed, z.bytes) },
		"plan":     func() error { return b.emptyPlan(z.files) },
		"barriers": func() error { return b.barriers(z.changed, z.bytes) },
		"unpack":   func() error { return b.unpack(z.roots) },
		"scan":     func() error { return b.scan(z.roots) },
		"apt":      func() error { return b.packages(z.roots) },
		"patch":    func() error { return b.patches(z.roots) },
		"night":    func() error { return b.night(z.roots) },
		"recovery": func() error {
			return b.recovery([]int{z.changed / 10, z.changed, 4 * z.changed}, z.bytes/int64(z.changed)/4)
		},
		"verify": func() error { return b.verify(z.files) },
	}
	for _, name := range partNames {
		if only != "" && only != name {
			continue
		}
		if err := parts[name](); err != nil {
			return err
		}
	}
	if asJSON {
		return json.NewEncoder(os.Stdout).Encode(b.rows)
	}
	fmt.Print(table(machineLine(), b.rows))
	return nil
}

// row is one measured thing.
type row struct {
	What      string    `json:"what"`
	Contender string    `json:"contender"`
	Unit      string    `json:"unit"` // ms or MB
	Samples   []float64 `json:"samples"`
	Ratio     float64   `json:"ratio,omitempty"` // liveupd's median over this one's
}

func (r row) median() float64 {
	s := slices.Sorted(slices.Values(r.Samples))
	if len(s) == 0 {
		return 0
	}
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// table renders the rows as Markdown.
func table(machine string, rows []row) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n", machine)
	fmt.Fprintln(&b, "| measured | by | median | least | greatest | liveupd takes |")
	fmt.Fprintln(&b, "| --- | --- | ---: | ---: | ---: | ---: |")
	for _, r := range rows {
		ratio := ""
		if r.Ratio > 0 {
			ratio = fmt.Sprintf("%.2f times that", r.Ratio)
		}
		fmt.Fprintf(&b, "| %s | %s | %.1f %s | %.1f | %.1f | %s |\n",
			r.What, r.Contender, r.median(), r.Unit, slices.Min(r.Samples), slices.Max(r.Samples), ratio)
	}
	return b.String()
}

// machineLine says on what it was measured.
func machineLine() string {
	out := func(name string, args ...string) string {
		b, err := exec.Command(name, args...).Output()
		if err != nil {
			return name + " not known"
		}
		first, _, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
		return first
	}
	return fmt.Sprintf("%s, Linux %s, %s processors, ext4 on a loop device; %s; %s; %s",
		time.Now().Format("2006-01-02"), out("uname", "-r"), out("nproc"),
		out("rsync", "--version"), out("git", "--version"), out("cp", "--version"))
}
