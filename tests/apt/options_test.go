package apt

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/tests/fixture"
)

// names gives the plan's packages as "NAME FROM TO".
func names(p *change.Plan) []string {
	var out []string
	for _, k := range p.Packages {
		out = append(out, strings.Join(strings.Fields(k.Name+" "+k.From+" "+k.To), " "))
	}
	return out
}

// release makes an archive with a Release file, so that pins by label and suite hold.
func release(root, dir, label, suite string, packs ...pack) (line string, err error) {
	at := filepath.Join(root, dir)
	if err := os.MkdirAll(at, 0o755); err != nil {
		return "", err
	}
	for _, p := range packs {
		if err := p.build(at); err != nil {
			return "", err
		}
	}
	if err := index(at); err != nil {
		return "", err
	}
	content, err := os.ReadFile(filepath.Join(at, "Packages"))
	if err != nil {
		return "", err
	}
	text := "Origin: Debian\nLabel: " + label + "\nSuite: " + suite + "\nCodename: " + suite + "\nArchitectures: amd64 all\nComponents: main\n" +
		"Date: Sat, 21 Nov 2026 00:00:00 UTC\nSHA256:\n " + digest(content) + "\n"
	return "deb [trusted=yes] file:/" + dir + " ./\n", os.WriteFile(filepath.Join(at, "Release"), []byte(text), 0o644)
}

// What is upgraded, installed, held and removed, by apt's own options.
func TestOptions(t *testing.T) {
	t.Parallel()
	p := func(name, version, fields string) pack {
		return pack{name: name, version: version, fields: fields, files: map[string]string{"usr/share/" + name + "/version": version + "\n"}}
	}
	root := folder(t, "small", func(root string) error {
		if err := installed(root, p("alpha", "1", ""), p("beta", "1", ""), p("gamma", "1", ""), p("old", "1", ""), p("black", "1", "")); err != nil {
			return err
		}
		main, err := release(root, "srv/main", "Debian", "bookworm",
			p("alpha", "2", ""), p("beta", "2", ""), p("black", "3", ""), p("fresh", "1", "Depends: dep\n"), p("dep", "1", ""),
			p("gamma", "2", "Conflicts: old\n"), p("alpha", "1.5", ""))
		if err != nil {
			return err
		}
		security, err := release(root, "srv/security", "Debian-Security", "bookworm-security", p("beta", "1.9", ""), p("black", "2", ""))
		if err != nil {
			return err
		}
		if err := p("local", "1", "Depends: dep\n").build(filepath.Join(root, "srv")); err != nil {
			return err
		}
		return put(root, map[string]string{
			"etc/apt/sources.list": main + security,
			"etc/apt/apt.conf.d/50unattended-upgrades": "Unattended-Upgrade::Origins-Pattern { \"origin=Debian,codename=bookworm-security,label=Debian-Security\"; \"origin=Debian,codename=bookworm,site=elsewhere.example\"; };\n" +
				"Unattended-Upgrade::Package-Blacklist { \"bla\"; };\n",
		})
	})
	before := tree(t, root)
	file := filepath.Join(root, "srv/local_1_all.deb")
	for _, tc := range []struct {
		what string
		args []string
		want []string
	}{
		{"an upgrade removes nothing", nil, []string{"alpha 1 2", "beta 1 2", "black 1 3"}},
		{"a full one does", []string{"--full-upgrade"}, []string{"alpha 1 2", "beta 1 2", "black 1 3", "gamma 1 2", "old 1"}},
		{"security only", []string{"--only-security"}, []string{"beta 1 1.9", "black 1 2"}},
		{"as unattended-upgrades", []string{"--unattended"}, []string{"beta 1 1.9"}},
		{"held", []string{"--hold", "alpha,black"}, []string{"beta 1 2"}},
		{"one package, with what it needs", []string{"fresh"}, []string{"dep 1", "fresh 1"}},
		{"a version", []string{"alpha=1.5"}, []string{"alpha 1 1.5"}},
		{"a removal", []string{"old-"}, []string{"old 1"}},
		{"a file", []string{file}, []string{"dep 1", "local 1"}},
		{"a file as a source", []string{"--source", "deb:" + file}, []string{"dep 1", "local 1"}},
	} {
		out := here(t, root, append([]string{"apply", "--plan"}, tc.args...)...)
		if out.Code != 0 {
			t.Errorf("%s: exit code %d: %s", tc.what, out.Code, out.Stderr+out.Error)
			continue
		}
		if got := names(out.Plan); !slices.Equal(got, tc.want) {
			t.Errorf("%s: the plan has %q; want %q", tc.what, got, tc.want)
		}
	}
	same(t, "after all the plans", before, tree(t, root), nil)
	for _, bad := range [][]string{
		{"no-such-package"}, {"--source", "deb:" + file, "--root", root, "alpha=9"},
	} {
		here(t, root, append([]string{"apply", "--plan"}, bad...)...).Want(t, 1)
	}
	broken := filepath.Join(root, "srv/broken.deb")
	if err := os.WriteFile(broken, []byte("no archive"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out := here(t, root, "apply", "--plan", broken).Want(t, 1); !strings.Contains(out.Error, broken) || strings.Contains(out.Error, "/run/liveupd") {
		t.Errorf("a broken package file: %s", out.Error)
	}
	if err := os.Remove(broken); err != nil {
		t.Fatal(err)
	}
	for _, bad := range [][]string{
		{"-o", "Dir::Etc=/x"},
		{"alpha;touch"},
		{"$(touch /x)"},
		{"--source", "deb:"},
		{"--source", "deb:/nowhere.deb"},
		{"--conffiles", "both"},
		{"--source", "tree:/srv", "alpha"},
		{"--hold", "-x"},
	} {
		here(t, root, append([]string{"apply", "--plan"}, bad...)...).Want(t, 2)
	}
	// What a plan made is what the apply takes, and no other request's.
	planned := here(t, root, "apply", "--plan").Want(t, 0)
	if out := here(t, root, "apply", "--expect", planned.Plan.ID, "--hold", "beta"); out.Code != 1 {
		t.Errorf("another request with --expect: exit code %d", out.Code)
	}
	// Nor is it taken once a package was pinned since, or a file was made anew under its name.
	here(t, root, "apply", "--plan").Want(t, 0)
	pin := filepath.Join(root, "etc/apt/preferences.d/beta")
	if err := put(root, map[string]string{"etc/apt/preferences.d/beta": "Package: beta\nPin: release *\nPin-Priority: -1\n"}); err != nil {
		t.Fatal(err)
	}
	if out := here(t, root, "apply", "--plan").Want(t, 0); !slices.Equal(names(out.Plan), []string{"alpha 1 2", "black 1 3"}) {
		t.Errorf("after beta was pinned: %q", names(out.Plan))
	}
	if err := os.Remove(pin); err != nil {
		t.Fatal(err)
	}
	here(t, root, "apply", "--plan", file).Want(t, 0)
	if err := p("local", "3", "Depends: dep\n").build(filepath.Join(root, "srv")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(root, "srv/local_3_all.deb"), file); err != nil {
		t.Fatal(err)
	}
	if out := here(t, root, "apply", "--plan", file).Want(t, 0); !slices.Equal(names(out.Plan), []string{"dep 1", "local 3"}) {
		t.Errorf("after the file was made anew: %q", names(out.Plan))
	}
	planned = here(t, root, "apply", "--plan").Want(t, 0)
	done := here(t, root, "apply", "--expect", planned.Plan.ID)
	if done.Code != 0 && done.Code != 4 {
		done.Want(t, 0)
	}
	if again := here(t, root, "apply", "--plan", "--exit-code").Want(t, 0); !again.Plan.Empty() {
		t.Errorf("a second plan: %+v", again.Plan.Changes)
	}
	// Left over: fresh's dependency once fresh goes.
	here(t, root, "apply", "fresh").Want(t, 0)
	gone := here(t, root, "apply", "--autoremove", "fresh-").Want(t, 0)
	if got := names(gone.Plan); !slices.Equal(got, []string{"dep 1", "fresh 1"}) {
		t.Errorf("with --autoremove: %q", got)
	}
}

// An archive that was tampered with is refused by name, and no one asks twice.
func TestVerification(t *testing.T) {
	t.Parallel()
	victim := pack{name: "victim", version: "2", files: map[string]string{"usr/share/victim": "2\n"}}
	root := folder(t, "small", func(root string) error {
		old := victim
		old.version = "1"
		if err := installed(root, old); err != nil {
			return err
		}
		return archive(root, []pack{victim})
	})
	deb := filepath.Join(root, "srv/archive/victim_2_all.deb")
	content, err := os.ReadFile(deb)
	if err != nil {
		t.Fatal(err)
	}
	before := tree(t, root)
	tampered := append([]byte{}, content...)
	tampered[len(tampered)-20] ^= 1
	if err := os.WriteFile(deb, tampered, 0o644); err != nil {
		t.Fatal(err)
	}
	out := here(t, root, "apply", "--yes").Want(t, 6)
	if !strings.Contains(out.Error, "victim") && !strings.Contains(out.Error, "mismatch") {
		t.Errorf("the error is %q", out.Error)
	}
	if err := os.WriteFile(deb, content, 0o644); err != nil {
		t.Fatal(err)
	}
	// Without a signature, and nobody who vouches for it.
	list := filepath.Join(root, "etc/apt/sources.list")
	if err := os.WriteFile(list, []byte("deb file:/srv/archive ./\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	here(t, root, "apply", "--yes").Want(t, 6)
	if err := os.WriteFile(list, []byte("deb [trusted=yes] file:/srv/archive ./\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	same(t, "after both", before, tree(t, root), func(p string) bool {
		return strings.HasPrefix(p, "srv") || strings.HasPrefix(p, "etc/apt") || strings.HasPrefix(p, "var/lib/apt/lists")
	})
	fixture.Here(t, "apply", "--yes", "--root", root).Want(t, 0)
	// The packages that were downloaded for it are of no more use; clean leaves nothing.
	if left, _ := filepath.Glob(filepath.Join(root, ".liveupd/sandbox/archives/*")); len(left) > 0 {
		t.Errorf("after the apply there are %q", left)
	}
	here(t, root, "apply", "--plan", "--hold", "victim").Want(t, 0)
	kept := here(t, root, "status").Want(t, 0)
	if !strings.Contains(kept.Stdout, `"caches":[{"name":"work"`) {
		t.Errorf("the status does not tell of caches: %s", kept.Stdout)
	}
	cleaned := here(t, root, "clean").Want(t, 0)
	if cleaned.Report.FreedBytes == 0 || len(cleaned.Report.FreedCaches) == 0 {
		t.Errorf("what clean freed: %+v", cleaned.Report)
	}
	if left, _ := filepath.Glob(filepath.Join(root, ".liveupd/sandbox/*")); len(left) > 0 {
		t.Errorf("after clean there are %q", left)
	}
	// Within a bound, the plan's own work goes first; with none nothing is left.
	for bound, want := range map[string]string{"16K": "lists", "0": ""} {
		if err := put(root, map[string]string{"etc/liveupd/liveupd.toml": "cache_max = \"" + bound + "\"\n"}); err != nil {
			t.Fatal(err)
		}
		planned := here(t, root, "apply", "--plan", "--hold", "victim").Want(t, 0)
		left, _ := filepath.Glob(filepath.Join(root, ".liveupd/sandbox/*"))
		if bound == "16K" && !slices.ContainsFunc(planned.Plan.Warnings, func(w string) bool { return strings.Contains(w, "cache_max") }) {
			t.Errorf("cache_max = %s: the plan does not tell: %q", bound, planned.Plan.Warnings)
		}
		for _, name := range left {
			if !strings.Contains(want, filepath.Base(name)) {
				t.Errorf("cache_max = %s: %s is left", bound, name)
			}
		}
	}
}
