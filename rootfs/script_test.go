package rootfs

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What scripts of other languages load by names that stand in their source.
func TestScriptModules(t *testing.T) {
	cases := []struct {
		name, start string
		fs          files
		want        []string
	}{
		{"node", "/usr/bin/node --max-old-space-size=64 /opt/app/main.js", files{
			"usr/bin/node":     program(),
			"opt/app/main.js":  "const a = require('./lib/a');\nimport b from \"../b.mjs\";\nconst p = require('pkg'); const fs = require('fs');\n// require('./no');\nrequire(path.join(__dirname, 'c.js'));\nrequire(name);\n",
			"opt/app/lib/a.js": "module.exports = require('./d.json')", "opt/app/lib/d.json": "{}", "opt/b.mjs": "", "opt/app/c.js": "", "opt/app/no.js": "",
			"opt/app/node_modules/pkg/package.json": `{"main": "./src/index"}`, "opt/app/node_modules/pkg/src/index.js": "require('dep')", "opt/node_modules/dep/index.js": "", "opt/app/node_modules/other/index.js": "",
		}, []string{"/opt/app/c.js", "/opt/app/lib/a.js", "/opt/app/lib/d.json", "/opt/app/node_modules/pkg/src/index.js", "/opt/b.mjs", "/opt/node_modules/dep/index.js"}},
		{"ruby", "/opt/app/run", files{
			"usr/bin/ruby":       program(),
			"opt/app/run":        "#!/usr/bin/ruby\n$LOAD_PATH.unshift File.expand_path('../lib', __FILE__)\nrequire 'one'\nrequire_relative 'two'\nrequire \"#{__dir__}/three\"\nrequire 'json'\n# require 'no'\n",
			"opt/app/lib/one.rb": "", "opt/lib/one.rb": "", "opt/app/two.rb": "load '/opt/four.rb'\n", "opt/four.rb": "", "opt/app/three.rb": "", "usr/lib/ruby/vendor_ruby/json.rb": "", "usr/lib/ruby/vendor_ruby/no.rb": "",
		}, []string{"/opt/app/lib/one.rb", "/opt/app/three.rb", "/opt/app/two.rb", "/opt/four.rb", "/usr/lib/ruby/vendor_ruby/json.rb"}},
		{"php", "/usr/bin/php -d x=1 /opt/app/run.php", files{
			"usr/bin/php":     program(),
			"opt/app/run.php": "<?php\nrequire_once __DIR__ . '/a.php';\ninclude(dirname(__FILE__) . \"/../b.php\");\nrequire 'c.php';\n# require 'no.php';\nrequire $x;\n",
			"opt/app/a.php":   "", "opt/b.php": "", "usr/share/php/c.php": "", "usr/share/php/no.php": "",
		}, []string{"/opt/app/a.php", "/opt/b.php", "/usr/share/php/c.php"}},
	}
	for _, c := range cases {
		got, _ := serviceUses(t, "ExecStart="+c.start+"\n", c.fs)
		var modules []string
		for _, s := range got {
			if p, ok := strings.CutPrefix(s, "module "); ok {
				modules = append(modules, p)
			}
		}
		slices.Sort(modules)
		if d := cmp.Diff(c.want, modules); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
	}
}
