package rootfs

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func perlTree(more files) files {
	const core = "usr/share/perl/5.36.0/"
	fs := files{
		"usr/bin/perl": program(), core + "strict.pm": "", core + "warnings.pm": "", core + "lib.pm": "", core + "base.pm": "", core + "parent.pm": "", core + "feature.pm": "",
		core + "XSLoader.pm": "", core + "FindBin.pm": "", core + "if.pm": "", "usr/share/perl/5.36": "-> 5.36.0",
		"usr/lib/x86_64-linux-gnu/perl5/5.36/": "",
	}
	maps.Copy(fs, more)
	return fs
}

func TestPerlModules(t *testing.T) {
	const site, core = "module /usr/share/perl5/", "module /usr/share/perl/5.36.0/"
	cases := []struct {
		name, unit string
		fs         files
		want       []string
	}{
		{
			"use, require in a function, do, what is not loaded is not used", "ExecStart=/usr/bin/perl -w /opt/s.pl\n",
			files{
				"opt/s.pl":                  "use strict;\nuse A::B qw(x);\nsub f { require C; }\ndo '/opt/conf.pl';\n# use D;\n=pod\n\nuse D;\n\n=cut\n__END__\nuse D;\n",
				"usr/share/perl5/A/B.pm":    "package A::B; use E; 1;\n",
				"usr/share/perl5/C.pm":      "1;",
				"usr/share/perl5/D.pm":      "1;",
				"usr/share/perl5/E.pm":      "1;",
				"usr/share/perl5/Unused.pm": "1;",
				"opt/conf.pl":               "require '/opt/more.pl';",
				"opt/more.pl":               "1;",
			},
			[]string{"script /opt/s.pl", core + "strict.pm", site + "A/B.pm", site + "C.pm", site + "E.pm", "module /opt/conf.pl", "module /opt/more.pl"},
		},
		{
			"folders: FindBin, dirname(__FILE__), -I, PERL5LIB, a variable, unshift", "Environment=PERL5LIB=/opt/env\nExecStart=/opt/app/bin/run arg\n",
			files{
				"opt/app/bin/run":    "#!/usr/bin/perl -I/opt/flag\nuse FindBin;\nuse lib \"$FindBin::Bin/../lib\";\nuse File::Basename; use lib dirname(__FILE__) . '/here';\nmy $d;\nBEGIN { $d = '/opt/var'; unshift @INC, \"/opt/un\"; }\nuse lib $d;\nuse One; use Two; use Three; use Four; use Five; use Six;\n",
				"opt/app/lib/One.pm": "", "opt/app/bin/here/Two.pm": "", "opt/flag/Three.pm": "", "opt/env/Four.pm": "", "opt/var/Five.pm": "", "opt/un/Six.pm": "",
				"usr/share/perl5/One.pm": "",
			},
			[]string{"script /opt/app/bin/run", core + "lib.pm", core + "FindBin.pm", "module /opt/app/lib/One.pm", "module /opt/app/bin/here/Two.pm", "module /opt/flag/Three.pm", "module /opt/env/Four.pm", "module /opt/var/Five.pm", "module /opt/un/Six.pm"},
		},
		{
			"parents, conditions, strings that are compiled", "ExecStart=/usr/bin/perl /opt/s.pl\n",
			files{
				"opt/s.pl":              "use parent qw(P1 P2);\nuse base 'P3';\nuse parent -norequire, 'P4';\nuse if $^O eq 'linux', 'P5' => 1;\neval { require P6 };\neval \"use P7; 1\" or die;\nuse v5.36;\n",
				"usr/share/perl5/P1.pm": "", "usr/share/perl5/P2.pm": "", "usr/share/perl5/P3.pm": "", "usr/share/perl5/P4.pm": "", "usr/share/perl5/P5.pm": "", "usr/share/perl5/P6.pm": "", "usr/share/perl5/P7.pm": "",
			},
			[]string{"script /opt/s.pl", core + "parent.pm", core + "base.pm", core + "if.pm", core + "feature.pm", core + "strict.pm", core + "warnings.pm", site + "P1.pm", site + "P2.pm", site + "P3.pm", site + "P5.pm", site + "P6.pm", site + "P7.pm"},
		},
		{
			"-M, -e, a module with machine code and its library", "ExecStart=/usr/bin/perl -MX=a,b -e 'use Y; Y::go()'\n",
			files{
				"usr/lib/x86_64-linux-gnu/perl5/5.36/X.pm": "require XSLoader; XSLoader::load('X');", "usr/lib/x86_64-linux-gnu/perl5/5.36/auto/X/X.so": lib("", "libx.so"),
				"usr/lib/libx.so": lib("libx.so"), "usr/share/perl5/Y.pm": "",
			},
			[]string{"module /usr/lib/x86_64-linux-gnu/perl5/5.36/X.pm", core + "XSLoader.pm", "module /usr/lib/x86_64-linux-gnu/perl5/5.36/auto/X/X.so", "soname /usr/lib/libx.so", site + "Y.pm"},
		},
		{
			"machine code under another module's name", "ExecStart=/usr/bin/perl -MX::Util -e 1\n",
			files{
				"usr/lib/x86_64-linux-gnu/perl5/5.36/X/Util.pm":   "BEGIN { require XSLoader; XSLoader::load('X', $VERSION) }",
				"usr/lib/x86_64-linux-gnu/perl5/5.36/auto/X/X.so": lib("", "libx.so") + "\x00Perl_apply_attrs_string\x00",
				"usr/lib/libx.so": lib("libx.so"),
				"usr/lib/x86_64-linux-gnu/perl/5.36/attributes.pm": "",
			},
			[]string{"module /usr/lib/x86_64-linux-gnu/perl5/5.36/X/Util.pm", core + "XSLoader.pm", "module /usr/lib/x86_64-linux-gnu/perl5/5.36/auto/X/X.so", "soname /usr/lib/libx.so", "module /usr/lib/x86_64-linux-gnu/perl/5.36/attributes.pm"},
		},
		{
			"a heredoc that looks like code, a local version before the packaged one", "ExecStart=/usr/bin/perl /opt/s.pl\n",
			files{"opt/s.pl": "print <<EOT;\nuse H;\nEOT\nuse L;\n", "usr/share/perl5/H.pm": "", "usr/share/perl5/L.pm": "", "usr/local/share/perl/5.36.0/L.pm": ""},
			[]string{"script /opt/s.pl", "module /usr/local/share/perl/5.36.0/L.pm"},
		},
		{
			"a shell script that becomes Perl", "ExecStart=/opt/s\n",
			files{"opt/s": "#!/bin/sh\nexec perl -x \"$0\" \"$@\"\n#!perl\nuse L;\n", "usr/share/perl5/L.pm": ""},
			[]string{"script /opt/s", site + "L.pm"},
		},
	}
	for _, c := range cases {
		got, tree := serviceUses(t, c.unit, perlTree(c.fs))
		got = slices.DeleteFunc(got, func(s string) bool {
			return strings.HasPrefix(s, "interpreter ") || strings.HasPrefix(s, "exec ") || s == "soname /lib" || strings.HasSuffix(s, "/perl/5.36")
		})
		slices.Sort(c.want)
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
		if len(tree.Warnings) > 0 {
			t.Errorf("%s: warnings %q", c.name, tree.Warnings)
		}
	}
}

func FuzzScanPerl(f *testing.F) {
	f.Add("use lib qw(a\nb); require Foo::Bar;\n=pod\n=cut\nprint <<E;\nE\nuse parent -norequire, \"$x\";")
	f.Add("BEGIN { unshift @INC, dirname(__FILE__) . '/x' } do \"$FindBin::Bin/${y}.pl\"; $z = \"")
	f.Fuzz(func(t *testing.T, src string) {
		loads, _ := scanPerl(src)
		l := &literals{file: "/a/b", script: "/c/d", vars: map[string]string{"x": "y"}}
		for _, ld := range loads {
			if ld.do == "use" && perlModule.FindString(ld.name) != ld.name {
				t.Errorf("a module's name that is none: %q", ld.name)
			}
			if vals, n := l.list(ld.rest); n > len(ld.rest) {
				t.Errorf("%q: %q read %d bytes", ld.rest, vals, n)
			}
		}
	})
}
