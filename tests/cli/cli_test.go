// Package cli tests the programs from outside, as a person or a script at a terminal
// meets them: each verb's words and exit status on trees of its own, with good
// and with bad input. The scripts are in testdata.
package cli

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/liveupd/liveupd/tests/machine"
)

func TestScripts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: updates keep owners")
	}
	bin := filepath.Dir(machine.Program(t, "liveupd"))
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":  exits,
			"digest": digest,
			"json":   jsonField,
		},
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", bin+":"+os.Getenv("PATH"))
			return nil
		},
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
	})
}

// exits STATUS PROGRAM ARG...: runs a program that must exit so.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits STATUS PROGRAM ARG...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("%s exited with %d; want %d", strings.Join(args[1:], " "), got, want)
	}
}

// digest DIR NAME: keeps the digest of a tree (what lies in .liveupd is not part of it) under
// NAME the first time, and compares with it afterwards; with "!" they must differ.
func digest(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: digest DIR NAME")
	}
	got := treeDigest(ts, ts.MkAbs(args[0]))
	name := "digest_" + args[1]
	if kept := ts.Getenv(name); kept == "" {
		ts.Setenv(name, got)
	} else if (kept == got) == neg {
		ts.Fatalf("the tree %s: digest %s, kept as %s: %s", args[0], got, args[1], kept)
	}
}

func treeDigest(ts *testscript.TestScript, dir string) string {
	sum := sha256.New()
	ts.Check(filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.Name() == ".liveupd" {
			return filepath.SkipDir
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		when := info.ModTime().UnixNano()
		if path == dir {
			when = 0 // .liveupd is made in it
		}
		fmt.Fprintf(sum, "%q %v %d\n", path, info.Mode(), when)
		switch {
		case info.Mode().IsRegular():
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			sum.Write(b)
		case info.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			fmt.Fprintln(sum, to)
		}
		return nil
	}))
	return hex.EncodeToString(sum.Sum(nil))[:16]
}

// json TYPE FIELD VALUE: the last command printed a line of this message_type whose
// field (a.b.0.c) is VALUE, as JSON. Each line of the output must be an object.
func jsonField(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: json TYPE FIELD VALUE")
	}
	found := false
	for line := range strings.Lines(ts.ReadFile("stdout")) {
		var object map[string]any
		if err := json.Unmarshal([]byte(line), &object); err != nil {
			ts.Fatalf("not a JSON object: %v: %s", err, line)
		}
		if object["message_type"] != args[0] {
			continue
		}
		found = true
		value, err := json.Marshal(field(object, strings.Split(args[1], ".")))
		ts.Check(err)
		if string(value) != args[2] {
			ts.Fatalf("%s of the %s line is %s; want %s", args[1], args[0], value, args[2])
		}
	}
	if !found {
		ts.Fatalf("no line has the message_type %q", args[0])
	}
}

func field(v any, names []string) any {
	for _, name := range names {
		switch container := v.(type) {
		case map[string]any:
			v = container[name]
		case []any:
			i, err := strconv.Atoi(name)
			if err != nil || i < 0 || i >= len(container) {
				return nil
			}
			v = container[i]
		default:
			return nil
		}
	}
	return v
}
