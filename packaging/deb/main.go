// Command deb builds the Debian package of liveupd: the same bytes from the same source,
// in whatever folder, at whatever time, with whatever umask and locale.
//
//  1. The version and the time come from git: a tag, or the commit's date.
//  2. The programs are built for the architecture, static; man pages and completions come
//     from the same source, built for this machine.
//  3. The units, the hook and the module for the initrds are those that `liveupd setup`
//     installs elsewhere (package recovery), and what lies in packaging/systemd.
//  4. The copyright file and the SBOM name the modules that the built programs say they
//     hold, and no others.
//  5. All of it is staged with its modes and one time, and dpkg-deb packs it as root's,
//     with one thread, for what several make may depend on the machine.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "deb:", err)
		stop()
		os.Exit(1)
	}
}

// build is one package under way.
type build struct {
	source  string // the tree that is built
	arch    string // as Debian and Go name it
	release release
	own     []string // the units of packaging/systemd
	level   int      // of the compression
	work    string   // a folder for what is made on the way
	tree    tree     // what the package ships
	modules []module
}

// arches are those whose names are the same for Go and for Debian, and on which liveupd
// knows the system calls.
var arches = []string{"amd64", "arm64"}

func run(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("deb", flag.ContinueOnError)
	source := fs.String("source", ".", "the source `tree`")
	out := fs.String("out", "bin", "the `folder` that gets the package")
	arch := fs.String("arch", "", "the `architecture`: amd64 or arm64 (default: this machine's)")
	level := fs.Int("level", 6, "how hard to compress, from 0 to 9")
	version := fs.String("version", "", "the upstream `version` (default: from git)")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if *arch == "" {
		var err error
		if *arch, err = output(ctx, *source, nil, "go", "env", "GOHOSTARCH"); err != nil {
			return err
		}
	}
	if !slices.Contains(arches, *arch) {
		return fmt.Errorf("cannot build for %s: only for %s", *arch, strings.Join(arches, " and "))
	}
	abs, err := filepath.Abs(*source)
	if err != nil {
		return err
	}
	b := &build{source: abs, arch: *arch, level: *level}
	if b.release, err = findRelease(ctx, abs, *version); err != nil {
		return err
	}
	if b.work, err = os.MkdirTemp("", "liveupd-deb-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.work)
	for _, step := range []func(context.Context) error{
		b.programs, b.pages, b.units, b.configuration, b.documents, b.control,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	file, err := b.pack(ctx, *out)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(os.Stdout, file)
	return err
}

// output runs a tool in the locale C and gives what it printed.
func output(ctx context.Context, dir string, env []string, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = slices.Concat(os.Environ(), []string{"LC_ALL=C.UTF-8", "TZ=UTC"}, env)
	var problems strings.Builder
	cmd.Stderr = &problems
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("cannot run %s %s: %w\n%s", name, strings.Join(args, " "), err, problems.String())
	}
	return strings.TrimSpace(string(out)), nil
}
