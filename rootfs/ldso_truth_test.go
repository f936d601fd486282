package rootfs

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/internal/sys"
)

// Libraries that are strewn at random over the folders that ld.so may look
// into, in a root of its own: what the real ld.so finds there is what we find,
// with a cache, with a stale one and without.
func TestStrewnAgainstLdSo(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("cannot change the root without root")
	}
	const loader = "/lib64/ld-linux-x86-64.so.2"
	for _, tool := range []string{"gcc", "ldconfig", loader} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("no %s here", tool)
		}
	}
	build := t.TempDir()
	run := func(args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
		cmd.Dir = build
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
	}
	source := "int v;\n"
	if err := os.WriteFile(filepath.Join(build, "a.c"), []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(build, "p.c"), []byte("int main(void) { return 0; }\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	shared := func(soname string, more ...string) {
		run(append([]string{"gcc", "-shared", "-fPIC", "-nostdlib", "-Wl,--no-as-needed", "-Wl,-soname," + soname, "-o", soname, "a.c"}, more...)...)
	}
	shared("libc1.so")
	shared("libb.so", "libc1.so")
	shared("liba.so", "libb.so", "-Wl,--disable-new-dtags,-rpath,/opt/ra")
	programs := map[string][]string{
		"plain": nil, "runpath": {"-Wl,--enable-new-dtags,-rpath,$ORIGIN/../r:/opt/r2"}, "rpath": {"-Wl,--disable-new-dtags,-rpath,/opt/r2:$ORIGIN/../r"},
		"nodeflib": {"-Wl,-z,nodefaultlib", "-Wl,--enable-new-dtags,-rpath,/opt/r2:/usr/lib/x86_64-linux-gnu"},
	}
	for name, more := range programs {
		run(append([]string{"gcc", "-Wl,--no-as-needed", "-o", name, "p.c", "liba.so", "libc1.so", "-Wl,--allow-shlib-undefined", "-L."}, more...)...)
	}
	const ma = "/usr/lib/x86_64-linux-gnu"
	folders := []string{
		ma, "/usr/lib", "/opt/conf1", "/opt/conf2", "/opt/r", "/opt/r2", "/opt/ra", "/opt/env", ma + "/glibc-hwcaps/x86-64-v2", ma + "/glibc-hwcaps/x86-64-v3",
		"/opt/conf1/glibc-hwcaps/x86-64-v2", "/opt/r/glibc-hwcaps/x86-64-v4", "/opt/hidden",
	}
	seed := uint64(1)
	if s := os.Getenv("LIVEUPD_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = n
	}
	rounds := 25
	if os.Getenv("LIVEUPD_LONG") != "" {
		rounds = 300
	}
	rnd := rand.New(rand.NewPCG(seed, 0))
	copyFile := func(from, to string) {
		t.Helper()
		b, err := os.ReadFile(from)
		if err == nil {
			err = os.MkdirAll(filepath.Dir(to), 0o755)
		}
		if err == nil {
			err = os.WriteFile(to, b, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	compared := 0
	for round := range rounds {
		root := t.TempDir()
		for _, link := range []string{"lib", "lib64"} {
			if err := os.MkdirAll(filepath.Join(root, "usr", link), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink("usr/"+link, filepath.Join(root, link)); err != nil {
				t.Fatal(err)
			}
		}
		copyFile(loader, filepath.Join(root, loader))
		copyFile("/lib/x86_64-linux-gnu/libc.so.6", root+ma+"/libc.so.6")
		for name := range programs {
			copyFile(filepath.Join(build, name), filepath.Join(root, "opt/bin", name))
		}
		strew := func(n int) {
			for _, lib := range []string{"liba.so", "libb.so", "libc1.so"} {
				for range n {
					copyFile(filepath.Join(build, lib), root+folders[rnd.IntN(len(folders))]+"/"+lib)
				}
			}
		}
		strew(1 + rnd.IntN(4))
		for _, d := range []string{"/opt/conf1", "/opt/conf2", "/etc/ld.so.conf.d"} {
			if err := os.MkdirAll(root+d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for name, text := range map[string]string{"/etc/ld.so.conf": "include ld.so.conf.d/*.conf\n", "/etc/ld.so.conf.d/a.conf": "/opt/conf1\n# x\n/opt/conf2\n"} {
			if err := os.WriteFile(root+name, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		mode := rnd.IntN(3)
		cmd := exec.CommandContext(t.Context(), "ldconfig", "-r", root)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("ldconfig: %v\n%s", err, out)
		}
		if mode == 1 { // the cache does not know of these, and some of what it knows goes
			strew(1)
			_ = os.Remove(root + "/opt/conf1/liba.so")
		}
		libraryPath := ""
		if mode == 2 {
			libraryPath = "/nowhere:/opt/env"
		}
		for name := range programs {
			list := exec.CommandContext(t.Context(), loader, "--list", "/opt/bin/"+name)
			list.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
			list.Dir = "/"
			list.Env = []string{}
			if libraryPath != "" {
				list.Env = []string{"LD_LIBRARY_PATH=" + libraryPath}
			}
			var out bytes.Buffer
			list.Stdout = &out
			// A missing library ends it with 127; what it found is printed nevertheless.
			if err := list.Run(); err != nil && out.Len() == 0 {
				continue
			}
			var want []string
			missing := false
			for line := range strings.Lines(out.String()) {
				f := strings.Fields(line)
				if len(f) >= 3 && f[1] == "=>" && strings.HasPrefix(f[2], "/") && strings.Contains(f[0], "lib") && !strings.Contains(f[0], "ld-linux") {
					real, err := filepath.EvalSymlinks(root + f[2])
					if err != nil {
						t.Fatal(err)
					}
					want = append(want, strings.TrimPrefix(real, root))
				}
				missing = missing || strings.Contains(line, "not found")
			}
			if missing {
				continue // what is not found by ld.so may be by us: ld.so.conf is asked too
			}
			r := newReader(asTree(Dir(openDir(t, root))), &warnings{})
			if r.levels = sys.CPULevels(); r.levels == nil {
				t.Skip("the processor's levels are not known")
			}
			var got []string
			for _, d := range r.closure("/opt/bin/"+name, libraryPath, "") {
				if fi, err := os.Lstat(root + d.path); err == nil && fi.Mode().IsRegular() && !strings.Contains(d.path, "ld-linux") {
					got = append(got, d.path)
				}
			}
			slices.Sort(want)
			slices.Sort(got)
			if d := cmp.Diff(slices.Compact(want), got); d != "" {
				t.Errorf("seed %d, round %d, %s, LD_LIBRARY_PATH=%s (-ld.so +ours):\n%s", seed, round, name, libraryPath, d)
			}
			compared++
		}
	}
	if compared < rounds {
		t.Errorf("only %d programs were compared in %d rounds", compared, rounds)
	}
	t.Logf("seed %d: %d programs in %d roots compared", seed, compared, rounds)
}

// What we read of a cache is what ldconfig -p prints of it.
func TestLdCacheAgainstLdconfig(t *testing.T) {
	b, err := os.ReadFile("/etc/ld.so.cache")
	if err != nil {
		t.Skip(err)
	}
	out, err := exec.CommandContext(t.Context(), "/sbin/ldconfig", "-p").Output()
	if err != nil {
		t.Skip(err)
	}
	entries, err := parseLdCache(b)
	if err != nil {
		t.Fatal(err)
	}
	var want, got []string
	for line := range strings.Lines(string(out)) {
		if name, rest, ok := strings.Cut(strings.TrimSpace(line), " ("); ok {
			if _, p, ok := strings.Cut(rest, ") => "); ok {
				want = append(want, name+" "+p)
			}
		}
	}
	for name, list := range entries {
		for _, e := range list {
			got = append(got, name+" "+e.path)
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("the cache (-ldconfig +ours):\n%.2000s", d)
	}
	t.Logf("%d entries compared", len(want))
}

func FuzzLdCache(f *testing.F) {
	if b, err := os.ReadFile("/etc/ld.so.cache"); err == nil {
		f.Add(b[:min(len(b), 4096)])
	}
	f.Add([]byte(cacheMagic + "\x01\x00\x00\x00" + strings.Repeat("\x00", 60)))
	f.Add([]byte(oldCacheMagic + cacheMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, err := parseLdCache(b)
		if err != nil && entries != nil {
			t.Error("entries beside an error")
		}
		for name, list := range entries {
			for _, e := range list {
				if name == "" || !strings.HasPrefix(e.path, "/") {
					t.Errorf("%q: %+v", name, e)
				}
			}
		}
	})
}
