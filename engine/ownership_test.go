package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/liveupd/liveupd/change"
)

// files describes a tree: a path with its content, "->TARGET" for a symlink,
// and an empty content with a path that ends in "/" for a directory.
type files map[string]string

// whole is what makes a tree a whole system, and more.
func whole(more files) files {
	out := files{"usr/lib/os-release": "ID=test\n"}
	maps.Copy(out, more)
	return out
}

func (f files) lay(t *testing.T, dir string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(f)) {
		full := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(strings.TrimSuffix(full, "/")), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		switch target, link := strings.CutPrefix(f[name], "->"); {
		case f[name] == "gone":
			err = os.RemoveAll(full)
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(full, 0o755)
		case link:
			err = os.Symlink(target, full)
		default:
			_ = os.Remove(full) // a new inode, as editors and installers make
			err = os.WriteFile(full, []byte(f[name]), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// readTree reads a root back as files, without liveupd's own.
func readTree(t *testing.T, dir string) files {
	t.Helper()
	out := files{}
	err := filepath.WalkDir(dir, func(full string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, full)
		switch {
		case rel == ".":
		case rel == ".liveupd":
			return filepath.SkipDir
		case e.IsDir():
			out[rel+"/"] = ""
		case e.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(full)
			out[rel] = "->" + target
			return err
		case e.Type().IsRegular():
			data, err := os.ReadFile(full)
			info, err2 := e.Info()
			if err = errors.Join(err, err2); err == nil {
				out[rel] = fmt.Sprintf("%s (%s, %d)", data, info.Mode(), info.ModTime().UnixNano())
			}
			return err
		default:
			out[rel] = e.Type().String()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

var ownership = []struct {
	name string
	live files // before any update
	v1   files // an earlier update, with edit what the machine did after it
	edit files
	v2   files // the update
	want files // paths afterwards, "gone" for an absent one
	err  string
}{
	// A whole tree and what is never its own.
	{name: "an empty /home erases nobody", live: files{"home/ann/letter": "dear"}, v2: whole(files{"home/": ""}), want: files{"home/ann/letter": "dear"}},
	{name: "an empty /var erases nothing", live: files{"var/lib/db/data": "rows"}, v2: whole(files{"var/": ""}), want: files{"var/lib/db/data": "rows"}},
	{name: "a missing /home erases nobody", live: files{"home/ann/letter": "dear"}, v2: whole(nil), want: files{"home/ann/letter": "dear"}},
	{name: "/home is not shipped to", live: files{"home/ann/letter": "dear"}, v2: whole(files{"home/ann/letter": "spam", "home/bob/x": "x"}), want: files{"home/ann/letter": "dear", "home/bob/x": "gone"}},
	{name: "/root stays", live: files{"root/.ssh/key": "k"}, v2: whole(files{"root/.ssh/key": "evil"}), want: files{"root/.ssh/key": "k"}},
	{name: "/srv stays", live: files{"srv/www/a": "a"}, v2: whole(files{"srv/www/a": "b"}), want: files{"srv/www/a": "a"}},
	{name: "/opt stays under a whole tree", live: files{"opt/app/a": "a"}, v2: whole(files{"opt/app/a": "b"}), want: files{"opt/app/a": "a"}},
	{name: "/mnt and /media stay", live: files{"mnt/a": "a", "media/b": "b"}, v2: whole(files{"mnt/a": "x", "media/b": "x"}), want: files{"mnt/a": "a", "media/b": "b"}},
	{name: "/usr/local stays", live: files{"usr/local/bin/mine": "m"}, v2: whole(files{"usr/local/": ""}), want: files{"usr/local/bin/mine": "m"}},
	{name: "/tmp and /run are not shipped to", live: files{"tmp/a": "a"}, v2: whole(files{"tmp/a": "x", "run/b": "b"}), want: files{"tmp/a": "a", "run/b": "gone"}},
	{name: "machine-id stays", live: files{"etc/machine-id": "1"}, v2: whole(files{"etc/machine-id": "2"}), want: files{"etc/machine-id": "1"}},
	{name: "SSH host keys stay", live: files{"etc/ssh/ssh_host_rsa_key": "1"}, v2: whole(files{"etc/ssh/ssh_host_rsa_key": "2"}), want: files{"etc/ssh/ssh_host_rsa_key": "1"}},
	{name: "fstab stays", live: files{"etc/fstab": "1"}, v2: whole(files{"etc/fstab": "2"}), want: files{"etc/fstab": "1"}},
	{name: "shadow and gshadow stay", live: files{"etc/shadow": "1", "etc/gshadow": "1"}, v2: whole(files{"etc/shadow": "2", "etc/gshadow": "2"}), want: files{"etc/shadow": "1", "etc/gshadow": "1"}},
	{name: "a partial tree cannot take shadow either", live: files{"etc/shadow": "1"}, v2: files{"etc/shadow": "2"}, want: files{"etc/shadow": "1"}},
	{name: "passwd of a whole tree without a base lands beside", live: files{"etc/passwd": "ann"}, v2: whole(files{"etc/passwd": "root"}), want: files{"etc/passwd": "ann", "etc/passwd.liveupd-new": "root"}},

	// /usr of a whole tree.
	{name: "what the image dropped goes", live: whole(files{"usr/bin/old": "o"}), v2: whole(files{"usr/bin/new": "n"}), want: files{"usr/bin/old": "gone", "usr/bin/new": "n"}},
	{name: "a whole folder goes", live: whole(files{"usr/share/a/b/c": "c"}), v2: whole(files{"usr/share/": ""}), want: files{"usr/share/a/": "gone", "usr/share/": ""}},
	{name: "what changed is replaced", live: whole(files{"usr/bin/x": "1"}), v2: whole(files{"usr/bin/x": "2"}), want: files{"usr/bin/x": "2"}},
	{name: "a file becomes a folder", live: whole(files{"usr/lib/x": "1"}), v2: whole(files{"usr/lib/x/y": "2"}), want: files{"usr/lib/x/y": "2"}},
	{name: "a folder becomes a file", live: whole(files{"usr/lib/x/y": "1"}), v2: whole(files{"usr/lib/x": "2"}), want: files{"usr/lib/x": "2"}},
	{name: "a symlink moves", live: whole(files{"usr/lib/l": "->a"}), v2: whole(files{"usr/lib/l": "->b"}), want: files{"usr/lib/l": "->b"}},
	{name: "a file becomes a symlink", live: whole(files{"usr/lib/l": "x"}), v2: whole(files{"usr/lib/l": "->b"}), want: files{"usr/lib/l": "->b"}},
	{name: "another layout is refused", live: whole(files{"lib": "->usr/lib", "bin": "->usr/bin", "usr/bin/": ""}), v2: whole(files{"lib/x": "x"}), err: "layout"},
	{name: "and the other way round", live: whole(files{"lib/x": "x"}), v2: whole(files{"lib": "->usr/lib"}), err: "layout"},
	{name: "a folder that holds the machine's files stays a folder", live: files{"etc/app/mine": "m"}, v2: whole(files{"etc/app": "a file"}), want: files{"etc/app/mine": "m", "etc/app.liveupd-new": "a file"}},

	// /etc, three ways.
	{name: "a new file is added", v2: files{"etc/new": "n"}, want: files{"etc/new": "n"}},
	{name: "without a base it is replaced", live: files{"etc/a": "old"}, v2: files{"etc/a": "new"}, want: files{"etc/a": "new"}},
	{name: "unchanged since the base: replaced", v1: files{"etc/a": "1"}, v2: files{"etc/a": "2"}, want: files{"etc/a": "2", "etc/a.liveupd-new": "gone"}},
	{name: "changed by the machine: stays, the new one beside", v1: files{"etc/a": "1"}, edit: files{"etc/a": "mine"}, v2: files{"etc/a": "2"}, want: files{"etc/a": "mine", "etc/a.liveupd-new": "2"}},
	{name: "changed to what comes: nothing beside", v1: files{"etc/a": "1"}, edit: files{"etc/a": "2"}, v2: files{"etc/a": "2", "etc/b": "b"}, want: files{"etc/a": "2", "etc/a.liveupd-new": "gone"}},
	{name: "dropped and unchanged: goes", v1: whole(files{"etc/a": "1"}), v2: whole(files{"etc/b": "b"}), want: files{"etc/a": "gone", "etc/b": "b"}},
	{name: "dropped but changed: stays", v1: whole(files{"etc/a": "1"}), edit: files{"etc/a": "mine"}, v2: whole(files{"etc/b": "b"}), want: files{"etc/a": "mine"}},
	{name: "dropped, never recorded: stays", live: whole(files{"etc/mine": "m"}), v2: whole(files{"etc/b": "b"}), want: files{"etc/mine": "m"}},
	{name: "removed by the machine: stays away", v1: files{"etc/a": "1"}, edit: files{"etc/a": "gone"}, v2: files{"etc/a": "1", "etc/b": "b"}, want: files{"etc/a": "gone", "etc/b": "b"}},
	{name: "an enablement link is /etc's", v1: whole(files{"etc/systemd/system/m.wants/a.service": "->/usr/lib/a"}), edit: files{"etc/systemd/system/m.wants/a.service": "gone"}, v2: whole(files{"etc/systemd/system/m.wants/a.service": "->/usr/lib/a", "etc/b": "b"}), want: files{"etc/systemd/system/m.wants/a.service": "gone"}},
	{name: "an enablement link that the image dropped goes", v1: whole(files{"etc/systemd/system/m.wants/a.service": "->/usr/lib/a"}), v2: whole(nil), want: files{"etc/systemd/system/m.wants/a.service": "gone"}},
	{name: "a partial update removes nothing of an earlier one", v1: files{"etc/a": "1"}, v2: files{"etc/b": "b"}, want: files{"etc/a": "1", "etc/b": "b"}},

	// /var and /boot: added to.
	{name: "/var gets what it lacks", live: files{"var/lib/a": "mine"}, v2: whole(files{"var/lib/a": "x", "var/lib/b": "b"}), want: files{"var/lib/a": "mine", "var/lib/b": "b"}},
	{name: "/boot gets what it lacks", live: files{"boot/vmlinuz-1": "1"}, v2: whole(files{"boot/vmlinuz-1": "x", "boot/vmlinuz-2": "2"}), want: files{"boot/vmlinuz-1": "1", "boot/vmlinuz-2": "2"}},
	{name: "/var of a partial tree is added to", live: files{"var/a": "mine"}, v2: files{"var/a": "x", "var/b": "b"}, want: files{"var/a": "mine", "var/b": "b"}},

	// Partial trees.
	{name: "a partial tree owns what it lists", live: files{"usr/lib/a": "1", "usr/lib/b": "1"}, v2: files{"usr/lib/a": "2"}, want: files{"usr/lib/a": "2", "usr/lib/b": "1"}},
	{name: "it may list /opt", live: files{"opt/app/old": "o"}, v2: files{"opt/app/x": "x"}, want: files{"opt/app/x": "x", "opt/app/old": "o"}},
	{name: "lib/x lands in usr/lib", live: files{"lib": "->usr/lib", "usr/lib/x": "1"}, v2: files{"lib/x": "2", "lib/d/y": "y"}, want: files{"lib": "->usr/lib", "usr/lib/x": "2", "usr/lib/d/y": "y"}},
	{name: "two names for one path that differ are refused", live: files{"lib": "->usr/lib", "usr/lib/x": "1"}, v2: files{"lib/x": "2", "usr/lib/x": "3"}, err: "x"},
	{name: "a folder link of the machine is followed inside the root", live: files{"opt/app": "->/srv2/app", "srv2/app/x": "1"}, v2: files{"opt/app/x": "2"}, want: files{"opt/app": "->/srv2/app", "srv2/app/x": "2"}},
	{name: "a machine's files bar a type change", live: files{"opt/app/mine": "m"}, v2: files{"opt/app": "a file"}, err: "opt/app"},
	{name: "a name that is not UTF-8", v2: files{"opt/a\xff\nb": "x"}, want: files{"opt/a\xff\nb": "x"}},

	// With a manifest.
	{name: "what a manifest owns, it owns wholly", live: files{"opt/app/old": "o", "opt/other/x": "x"}, v2: files{"liveupd.toml": `owns = ["/opt/app"]`, "opt/app/new": "n"}, want: files{"opt/app/old": "gone", "opt/app/new": "n", "opt/other/x": "x", "liveupd.toml": "gone"}},
	{name: "what it never touches", live: files{"opt/app/data": "d"}, v2: files{"liveupd.toml": "owns = [\"/opt/app\"]\nnever = [\"/opt/app/data\"]", "opt/app/new": "n"}, want: files{"opt/app/data": "d", "opt/app/new": "n"}},
	{name: "it cannot own /etc", live: files{"etc/a": "a"}, v2: files{"liveupd.toml": `owns = ["/etc"]`, "etc/b": "b"}, err: "/etc"},
	{name: "nor what is the machine's", v2: files{"liveupd.toml": `owns = ["/home/ann"]`, "opt/b": "b"}, err: "/home"},
	{name: "a word that it does not know", v2: files{"liveupd.toml": "own = 1", "opt/b": "b"}, err: "own"},
}

// Who owns a path, from end to end: each case is an apply, the same again,
// which has nothing to do, and a rollback that leaves the tree as it was.
func TestOwnership(t *testing.T) {
	if len(ownership) < 40 {
		t.Fatalf("%d cases", len(ownership))
	}
	for _, tt := range ownership {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			tt.live.lay(t, b.root)
			if tt.v1 != nil {
				tt.v1.lay(t, b.source)
				b.must(Request{Verb: "apply"})
				if err := os.RemoveAll(b.source); err != nil {
					t.Fatal(err)
				}
			}
			tt.edit.lay(t, b.root)
			tt.v2.lay(t, b.source)
			before := readTree(t, b.root)
			result, err := b.run(Request{Verb: "apply"})
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("apply = %v; want an error with %q", err, tt.err)
				}
				if after := readTree(t, b.root); !maps.Equal(before, after) {
					t.Errorf("a refused update changed the tree: %v, then %v", before, after)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			after := readTree(t, b.root)
			for path, want := range tt.want {
				got, ok := after[path]
				if content, _, regular := strings.Cut(got, " (-"); regular {
					got = content
				}
				if want == "gone" && ok || want != "gone" && (!ok || got != want) {
					t.Errorf("%q is %q (there: %v); want %q", path, got, ok, want)
				}
			}
			if again := b.must(Request{Verb: "apply"}).(*change.Report); again.Result != "nothing-to-do" {
				t.Errorf("the same again: %s, %v", again.Result, readTree(t, b.root))
			}
			if result.(*change.Report).Result == "nothing-to-do" {
				if !maps.Equal(before, after) {
					t.Errorf("nothing to do, and yet %v became %v", before, after)
				}
				return
			}
			b.must(Request{Verb: "rollback"})
			if back := readTree(t, b.root); !maps.Equal(before, back) {
				t.Errorf("after the rollback the tree is %v; want %v", back, before)
			}
		})
	}
}

func TestManyRemovals(t *testing.T) {
	b := newBed(t)
	live, v2 := whole(nil), whole(files{"usr/share/": ""})
	for i := range 1100 {
		live[fmt.Sprintf("usr/share/f%d", i)] = ""
	}
	live.lay(t, b.root)
	v2.lay(t, b.source)
	_, err := b.run(Request{Verb: "apply"})
	hint, ok := errors.AsType[*change.HintError](err)
	if !ok || !strings.Contains(hint.Hint, "--allow-removals") {
		t.Fatalf("apply = %v; want a hint that names --allow-removals", err)
	}
	b.must(Request{Verb: "apply", AllowRemovals: true})
	if got := b.read("usr/share/f7"); got != "-" {
		t.Errorf("it is still there: %q", got)
	}
}
