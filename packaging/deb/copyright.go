package main

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// common are the licences whose texts each Debian machine has.
var common = map[string]string{
	"Apache-2.0": "Apache-2.0", "MPL-2.0": "MPL-2.0",
}

// copyright writes debian/copyright (the machine-readable format 1.0) for liveupd and for
// each module that its programs hold, and the notices that the modules want to be passed on.
func (b *build) copyright() (copyright, notices []byte, err error) {
	var c, n bytes.Buffer
	fmt.Fprintf(&c, `Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: liveupd
Source: %s
Comment: The programs are static. Beside liveupd's own code they hold parts of Go's
 standard library and of the modules below, each given by its path in the module
 cache; liveupd.spdx.json beside this file says which program holds what.

Files: *
Copyright: The liveupd authors
License: Apache-2.0
`, homepage)
	texts := map[string]bool{"Apache-2.0": true}
	for _, m := range b.modules {
		at := fmt.Sprintf("%s@%s/*", m.path, m.version)
		fmt.Fprintf(&c, "\nFiles: %s\nCopyright: %s\n", at, strings.Join(m.holders, "\n           "))
		alone := len(m.licences) == 1 && common[m.licences[0]] != ""
		switch {
		case alone:
			fmt.Fprintf(&c, "License: %s\n", m.licences[0])
			texts[m.licences[0]] = true
		default:
			fmt.Fprintf(&c, "License: %s\n", strings.NewReplacer(" AND ", " and ", "MIT", "Expat").Replace(m.expression()))
			for _, text := range m.texts {
				writeText(&c, shorten(text))
			}
		}
		if m.notice != "" {
			fmt.Fprintf(&n, "%s %s\n\n%s\n\n", m.path, m.version, strings.TrimSpace(m.notice))
		}
	}
	names := make([]string, 0, len(texts))
	for name := range texts {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(&c, "\nLicense: %s\n On Debian systems the text of this licence is in\n /usr/share/common-licenses/%s.\n", name, common[name])
	}
	return c.Bytes(), n.Bytes(), nil
}

// apacheText is the licence as it stands in a file, with what surrounds it left out.
var apacheText = regexp.MustCompile(`(?s)[ \t]*Apache License\s+Version 2\.0.*?END OF TERMS AND CONDITIONS`)

// shorten replaces a licence of which each machine has the text by where it is.
func shorten(text string) string {
	const where = "On Debian systems the text of this licence is in\n/usr/share/common-licenses/"
	text = apacheText.ReplaceAllString(text, "Apache-2.0. "+where+"Apache-2.0.")
	if got := licencesOf(text); len(got) == 1 && got[0] == "MPL-2.0" && len(text) > 8000 {
		return "MPL-2.0. " + where + "MPL-2.0."
	}
	return text
}

// writeText writes a text as the continuation of a field.
func writeText(c *bytes.Buffer, text string) {
	for line := range strings.Lines(strings.TrimSpace(text) + "\n") {
		line = strings.TrimRight(line, " \t\r\n\f")
		if line == "" {
			line = "."
		}
		fmt.Fprintf(c, " %s\n", line)
	}
}
