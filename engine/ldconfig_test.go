package engine

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/nsmount"
)

// library is one of this machine's, with a soname of the same length in place of its own.
func library(t *testing.T, soname string) string {
	t.Helper()
	names, err := filepath.Glob("/lib/*-linux-gnu/lib*.so.*")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		f, err := elf.Open(name)
		if err != nil {
			continue
		}
		got, err := f.DynString(elf.DT_SONAME)
		f.Close()
		if err != nil || len(got) != 1 || len(got[0]) != len(soname) {
			continue
		}
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return string(bytes.ReplaceAll(data, []byte("\x00"+got[0]+"\x00"), []byte("\x00"+soname+"\x00")))
	}
	t.Skipf("this machine has no library whose soname has %d letters", len(soname))
	return ""
}

// loaderBed is a root with this machine's ldconfig, a cache that it made, and a library.
func loaderBed(t *testing.T) *bed {
	t.Helper()
	b := diskBed(t)
	program, err := os.ReadFile("/sbin/ldconfig")
	if err != nil {
		t.Skipf("this machine has no ldconfig: %v", err)
	}
	b.write(b.root, "usr/sbin/ldconfig", string(program))
	b.write(b.root, "etc/ld.so.conf", "include /etc/ld.so.conf.d/*.conf\n")
	b.write(b.root, "usr/lib/libqa.so.1.0", library(t, "libqa.so.1"))
	for _, d := range []string{"etc/ld.so.conf.d", "run", "tmp", "proc", "sys", "dev", "opt/app/lib", "var/cache/ldconfig"} {
		b.do(os.MkdirAll(b.at(d), 0o755))
	}
	b.do(
		os.Chmod(b.at("usr/sbin/ldconfig"), 0o755), os.Symlink("usr/lib", b.at("lib")), os.Symlink("usr/sbin", b.at("sbin")),
		os.WriteFile(b.at("opt/app/lib/libqb.so.1.0"), []byte(library(t, "libqb.so.1")), 0o644),
		os.Symlink("libqb.so.1.0", b.at("opt/app/lib/libqb.so.1")),
	)
	b.ldconfig()
	root, err := nsmount.Open(b.root, false)
	if err == nil {
		_, err = nsmount.OpenView(t.Context(), nil, nsmount.ViewOptions{Root: root})
		root.Close()
	}
	if err != nil {
		t.Skipf("no staged view here: %v", err)
	}
	return b
}

// ldconfig runs this machine's on the root.
func (b *bed) ldconfig() {
	b.t.Helper()
	if out, err := exec.CommandContext(b.t.Context(), "/sbin/ldconfig", "-i", "-r", b.root).CombinedOutput(); err != nil {
		b.t.Fatalf("ldconfig: %v\n%s", err, out)
	}
}

// cached is what the root's cache has, sorted: "soname path".
func (b *bed) cached() []string {
	b.t.Helper()
	out, err := exec.CommandContext(b.t.Context(), "/sbin/ldconfig", "-p", "-C", b.at("etc/ld.so.cache")).Output()
	if err != nil {
		b.t.Fatalf("ldconfig -p: %v", err)
	}
	var list []string
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) > 2 && strings.HasPrefix(f[0], "lib") {
			list = append(list, f[0]+" "+f[len(f)-1])
		}
	}
	slices.Sort(list)
	return list
}

func pathsOf(p *change.Plan) []string {
	var out []string
	for _, c := range p.Paths {
		out = append(out, strings.TrimSpace(fmt.Sprintf("%s %s %s", c.Op, c.Path, c.By)))
	}
	return out
}

// What an update means for the loader is in the plan, is committed with it, and
// is taken back with it; the plan and the apply say the same.
func TestLoaderCache(t *testing.T) {
	const a, bLib, cache = "libqa.so.1 /lib/libqa.so.1", "libqb.so.1 /opt/app/lib/libqb.so.1", "/etc/ld.so.cache"
	tests := []struct {
		name   string
		lay    func(t *testing.T, b *bed)
		made   []string // of the plan's paths, those that ldconfig makes
		cached []string
		links  map[string]string
	}{
		{"a folder more", func(_ *testing.T, b *bed) {
			b.write(b.source, "etc/ld.so.conf.d/app.conf", "/opt/app/lib\n")
		}, []string{"replace " + cache}, []string{a, bLib}, nil},
		{"a library without its link", func(t *testing.T, b *bed) {
			b.write(b.source, "usr/lib/libqc.so.1.0", library(t, "libqc.so.1"))
		}, []string{"replace " + cache, "add /usr/lib/libqc.so.1"}, []string{a, "libqc.so.1 /lib/libqc.so.1"}, map[string]string{"usr/lib/libqc.so.1": "libqc.so.1.0"}},
		{"a newer one of the same soname", func(t *testing.T, b *bed) {
			b.write(b.source, "usr/lib/libqa.so.1.1", library(t, "libqa.so.1"))
		}, []string{"replace /usr/lib/libqa.so.1"}, []string{a}, map[string]string{"usr/lib/libqa.so.1": "libqa.so.1.1"}},
		{"other bytes under the same soname", func(t *testing.T, b *bed) {
			b.write(b.source, "usr/lib/libqa.so.1.0", library(t, "libqa.so.1")+"more")
		}, nil, []string{a}, nil},
		{"a library of a folder that no loader reads", func(t *testing.T, b *bed) {
			b.write(b.source, "opt/other/libqd.so.1", library(t, "libqd.so.1"))
		}, nil, []string{a}, nil},
		{"a comment in ld.so.conf", func(_ *testing.T, b *bed) {
			b.write(b.source, "etc/ld.so.conf.d/none.conf", "# nothing\n")
		}, nil, []string{a}, nil},
		{"another soname in the same file", func(t *testing.T, b *bed) {
			b.write(b.source, "usr/lib/libqa.so.1.0", library(t, "libqa.so.2"))
		}, []string{"replace " + cache, "add /usr/lib/libqa.so.2"}, []string{"libqa.so.2 /lib/libqa.so.2"}, nil},
		{"a library that goes", func(t *testing.T, b *bed) {
			b.write(b.root, "opt/own/libqd.so.1.0", library(t, "libqd.so.1"))
			b.do(os.Symlink("/opt/own/libqd.so.1.0", b.at("usr/lib/libqd.so.1")))
			b.ldconfig()
			b.write(b.source, "opt/own/note", "x")
			b.write(b.source, "liveupd.toml", "owns = ['/opt/own']\n")
		}, []string{"replace " + cache, "remove /usr/lib/libqd.so.1"}, []string{a}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := loaderBed(t)
			tt.lay(t, b)
			before, entries := b.read("etc/ld.so.cache"), b.cached()
			plan := b.must(Request{Verb: "plan", AllowRemovals: true}).(*change.Plan)
			var made []string
			for _, c := range plan.Paths {
				if c.By != "" {
					made = append(made, fmt.Sprintf("%s %s", c.Op, c.Path))
				}
			}
			if !slices.Equal(made, tt.made) {
				t.Errorf("ldconfig makes %q; want %q\n%q", made, tt.made, plan.Warnings)
			}
			if now := b.read("etc/ld.so.cache"); now != before {
				t.Error("the plan changed the cache")
			}
			report := b.must(Request{Verb: "apply", AllowRemovals: true, Expect: plan.ID}).(*change.Report)
			if report.PlanID != plan.ID {
				t.Errorf("the apply carried out plan %s; want %s", report.PlanID, plan.ID)
			}
			if got := b.cached(); !slices.Equal(got, tt.cached) {
				t.Errorf("the cache has %q; want %q", got, tt.cached)
			}
			for link, want := range tt.links {
				if got, err := os.Readlink(b.at(link)); got != want {
					t.Errorf("%s leads to %q, %v; want %q", link, got, err, want)
				}
			}
			// ldconfig itself has nothing left to do.
			now := b.cached()
			b.ldconfig()
			if again := b.cached(); !slices.Equal(now, again) {
				t.Errorf("ldconfig makes %q of the root; the update left %q", again, now)
			}
			if again := b.must(Request{Verb: "apply", AllowRemovals: true}).(*change.Report); again.Result != "nothing-to-do" {
				t.Errorf("the same once more: %s; want nothing-to-do", again.Result)
			}
			b.must(Request{Verb: "rollback"})
			if got := b.cached(); !slices.Equal(got, entries) {
				t.Errorf("after the rollback the cache has %q; want %q", got, entries)
			}
		})
	}
}

// A tree that brings a cache keeps it, and a root without ldconfig stays without a cache.
func TestLoaderCacheOfOthers(t *testing.T) {
	b := loaderBed(t)
	b.write(b.source, "etc/ld.so.conf.d/app.conf", "/opt/app/lib\n")
	b.write(b.source, "etc/ld.so.cache", b.read("etc/ld.so.cache"))
	b.do(sameTimes(b.at("etc/ld.so.cache"), filepath.Join(b.source, "etc/ld.so.cache")))
	p := b.must(Request{Verb: "plan"}).(*change.Plan)
	if got := pathsOf(p); !slices.Equal(got, []string{"add /etc/ld.so.conf.d/app.conf"}) {
		t.Errorf("with a cache of its own: %q", got)
	}
	b.do(os.Remove(filepath.Join(b.source, "etc/ld.so.cache")), os.Remove(b.at("usr/sbin/ldconfig")))
	p = b.must(Request{Verb: "plan"}).(*change.Plan)
	if got := pathsOf(p); !slices.Equal(got, []string{"add /etc/ld.so.conf.d/app.conf"}) {
		t.Errorf("without ldconfig: %q", got)
	}
}

// A program that fails, or makes what no loader reads, refuses the update with its
// own words, and nothing was changed.
func TestLdconfigFails(t *testing.T) {
	box, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("no busybox here")
	}
	tests := []struct{ name, script, want string }{
		{"fails", "echo no such soname >&2; exit 3", "no such soname"},
		{"garbage", "echo garbage >/etc/ld.so.cache", "no cache that the loader reads"},
		{"removes it", "rm /etc/ld.so.cache", "it left none"},
		{"killed", "kill -9 $$", "killed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := loaderBed(t)
			b.write(b.root, "bin/sh", string(box))
			b.write(b.root, "bin/rm", string(box))
			b.do(os.Chmod(b.at("bin/sh"), 0o755), os.Chmod(b.at("bin/rm"), 0o755))
			b.write(b.source, "usr/sbin/ldconfig", "#!/bin/sh\n"+tt.script+"\n")
			b.do(os.Chmod(filepath.Join(b.source, "usr/sbin/ldconfig"), 0o755))
			b.write(b.source, "etc/ld.so.conf.d/app.conf", "/opt/app/lib\n")
			before := b.cached()
			for _, verb := range []string{"plan", "apply"} {
				_, err := b.run(Request{Verb: verb})
				if err == nil || !strings.Contains(err.Error(), tt.want) || !errors.Is(err, ErrNothingCommitted) {
					t.Errorf("%s: %v; want %q and that nothing was changed", verb, err, tt.want)
				}
			}
			if got := b.cached(); !slices.Equal(got, before) {
				t.Errorf("the cache has %q; want %q", got, before)
			}
			if got := b.read("etc/ld.so.conf.d/app.conf"); got != "-" {
				t.Error("the update was laid although it was refused")
			}
		})
	}
}

// Links that ldconfig makes in a folder that is all the image's are part of what is
// recorded: no damage, and not gone with the next update of the same.
func TestLoaderLinksOfAWholeTree(t *testing.T) {
	b := loaderBed(t)
	program := b.read("usr/sbin/ldconfig")
	whole(files{"usr/bin/tool": "tool", "usr/lib/libqa.so.1.0": library(t, "libqa.so.1")}).lay(t, b.source)
	b.write(b.source, "usr/sbin/ldconfig", program)
	b.do(os.Chmod(filepath.Join(b.source, "usr/sbin/ldconfig"), 0o755))
	b.write(b.source, "usr/lib/libqe.so.1.0", library(t, "libqe.so.1"))
	b.must(Request{Verb: "apply", AllowRemovals: true})
	want := []string{"libqa.so.1 /lib/libqa.so.1", "libqe.so.1 /lib/libqe.so.1"}
	if got := b.cached(); !slices.Equal(got, want) {
		t.Errorf("the cache has %q; want %q", got, want)
	}
	if found, _, err := b.verify(Request{}); err != nil || len(found) > 0 {
		t.Errorf("verify finds %q, %v", found, err)
	}
	if r := b.must(Request{Verb: "apply", AllowRemovals: true}).(*change.Report); r.Result != "nothing-to-do" {
		t.Errorf("the same once more: %s; want nothing-to-do", r.Result)
	}
	if found, _, err := b.verify(Request{}); err != nil || len(found) > 0 {
		t.Errorf("verify finds %q, %v after the same once more", found, err)
	}
	b.write(b.source, "usr/bin/tool", "tool 2")
	b.must(Request{Verb: "apply", AllowRemovals: true})
	if got, err := os.Readlink(b.at("usr/lib/libqe.so.1")); got != "libqe.so.1.0" {
		t.Errorf("after a further update the link leads to %q, %v", got, err)
	}
	if found, _, err := b.verify(Request{}); err != nil || len(found) > 0 {
		t.Errorf("verify finds %q, %v after a further update", found, err)
	}
}
