package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
)

func TestParsePolicy(t *testing.T) {
	got, err := ParsePolicy("p.toml", []byte(`
# the database
[[rule]]
units = ["postgresql@*.service", "db.service"]
windows = ["Sat,Sun 02:00-04:30", "Mon..Wed 22:00-05:00", "03:00-24:00"]
reason = "business hours"

[[rule]]
paths = ["/opt/app/", "/usr/lib/*/libssl*"]
packages = ["openssl"]
action = "ignore"
`))
	if err != nil {
		t.Fatal(err)
	}
	want := []change.Rule{
		{
			Units: []string{"postgresql@*.service", "db.service"}, Reason: "business hours", Source: "p.toml:3",
			Windows: []change.Window{{Days: 1<<6 | 1, From: 120, To: 270}, {Days: 1<<1 | 1<<2 | 1<<3, From: 22 * 60, To: 300}, {Days: 127, From: 180, To: 1440}},
		},
		{Paths: []string{"/opt/app/**", "/usr/lib/*/libssl*"}, Packages: []string{"openssl"}, Action: "ignore", Source: "p.toml:8"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestPolicyMistakes(t *testing.T) {
	for _, tt := range []struct{ text, err string }{
		{"[[rule]]\nunit = [\"a.service\"]\naction = \"defer\"", "p.toml:2:1: unknown setting rule.unit; a rule has units"},
		{"[[rules]]\n", "p.toml:1:3: unknown setting rules"},
		{"[[rule]]\nunits = [\"a.service\"\naction=1", "p.toml:3:"},
		{"[[rule]]\nunits = [\"a.service\"]\naction = \"explode\"", "p.toml:3:10: "},
		{"[[rule]]\nunits = [\"a.service\"]\naction = \"explode\"", "none of restart, reload, defer, never, ignore"},
		{"[[rule]]\nunits = [\"nginx\"]\naction = \"defer\"", `"nginx.service" perhaps`},
		{"[[rule]]\nunits = [\"a[.service\"]\naction = \"defer\"", "p.toml:2:10: "},
		{"[[rule]]\nunits = \"a.service\"\naction = \"defer\"", "p.toml:2:"},
		{"[[rule]]\npaths = [\"etc/x\"]\naction = \"defer\"", "no absolute path"},
		{"[[rule]]\npaths = [\"/a/**/b\"]\naction = \"defer\"", "at the end of a pattern"},
		{"\n\n[[rule]]\naction = \"defer\"", "p.toml:3:1: rule 1 names no units"},
		{"[[rule]]\nunits = [\"*\"]\naction = \"defer\"\n[[rule]]\nunits = [\"*\"]", "p.toml:4:1: rule 2 has neither"},
		{"[[rule]]\nunits = [\"*\"]\naction = \"never\"\nwindows = [\"03:00-04:00\"]", "leave one of them out"},
		{"[[rule]]\nunits = [\"*\"]\nwindows = [\"3-4\"]", "a time is HH:MM"},
		{"[[rule]]\nunits = [\"*\"]\nwindows = [\"25:00-04:00\"]", "a time is HH:MM"},
		{"[[rule]]\nunits = [\"*\"]\nwindows = [\"Foo 03:00-04:00\"]", `"Foo" names no day`},
		{"[[rule]]\nunits = [\"*\"]\nwindows = [\"03:00-03:00\"]", "all day is 00:00-24:00"},
		{"[[rule]]\nunits = [\"*\"]\nwindows = [\"Mon\"]", "has a - between"},
	} {
		_, err := ParsePolicy("p.toml", []byte(tt.text))
		if err == nil || !strings.Contains(err.Error(), tt.err) {
			t.Errorf("ParsePolicy(%q) = %v; want an error with %q", tt.text, err, tt.err)
		}
	}
}

func TestLoadPolicy(t *testing.T) {
	root := t.TempDir()
	rule := func(unit string) string { return "[[rule]]\nunits = [\"" + unit + ".service\"]\naction = \"defer\"\n" }
	for name, text := range map[string]string{
		"usr/lib/liveupd/policy.d/10.toml": rule("vendor"), "etc/liveupd/policy.d/10.toml": rule("admin"),
		"usr/lib/liveupd/policy.d/20.toml": rule("hidden"), "etc/liveupd/policy.d/20.toml": "",
		"run/liveupd/policy.d/05.toml": rule("runtime"), "etc/liveupd/policy.d/30.conf": "nonsense",
	} {
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	rules, err := LoadPolicy(root)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range rules {
		got = append(got, r.Units...)
	}
	if d := cmp.Diff([]string{"runtime.service", "admin.service"}, got); d != "" {
		t.Error(d)
	}
}

func FuzzParsePolicy(f *testing.F) {
	f.Add([]byte("[[rule]]\nunits = [\"a.service\"]\nwindows = [\"Mon..Fri 22:00-05:00\"]\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		rules, err := ParsePolicy("p", b)
		for _, r := range rules {
			if err != nil || len(r.Units)+len(r.Paths)+len(r.Packages) == 0 {
				t.Errorf("rule %+v with error %v", r, err)
			}
			for _, w := range r.Windows {
				var again window
				if err := again.UnmarshalText([]byte(change.Window(w).String())); err != nil || change.Window(again) != w {
					t.Errorf("window %+v reads back as %+v, %v", w, again, err)
				}
			}
		}
	})
}
