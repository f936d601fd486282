package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// newManPages writes the manual, from the same words that --help prints. They are
// plain text with tables in them, which Markdown (the way of cobra's own generator) would
// run together.
func newManPages() *cobra.Command {
	return &cobra.Command{
		Use: "man-pages DIR", Short: "write a man page for each verb into a folder",
		Args: cobra.ExactArgs(1), Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, c := range documented(cmd.Root()) {
				name := filepath.Join(args[0], pageName(c)+".1")
				if err := os.WriteFile(name, manPage(c), 0o644); err != nil {
					return fmt.Errorf("cannot write a man page: %w", err)
				}
			}
			return nil
		},
	}
}

// documented lists a command and those below it that persons call; help topics, too.
func documented(c *cobra.Command) []*cobra.Command {
	list := []*cobra.Command{c}
	for _, sub := range c.Commands() {
		if !sub.Hidden && sub.Name() != "help" && sub.Name() != "completion" {
			list = append(list, documented(sub)...)
		}
	}
	return list
}

func pageName(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

// roff makes text safe between roff's own requests.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	return s
}

// heading is a line that begins a section in a help text.
var heading = regexp.MustCompile(`^[A-Z][A-Z ]+$`)

// listed is a line of a list of exit codes.
var listed = regexp.MustCompile(`^ *([0-9]+)  (.*)$`)

func manPage(c *cobra.Command) []byte {
	var b bytes.Buffer
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	name := pageName(c)
	line(`.TH "%s" "1" "@DATE@" "liveupd @VERSION@" "liveupd"`, strings.ToUpper(roff(name)))
	line(".SH NAME\n%s \\- %s", roff(name), roff(c.Short))
	if c.Runnable() || c.HasSubCommands() {
		line(".SH SYNOPSIS")
		synopsis := c.UseLine()
		if !c.Runnable() {
			synopsis = c.CommandPath() + " VERB [flags]"
		}
		line(`\fB%s\fR%s`, roff(c.CommandPath()), roff(strings.TrimPrefix(synopsis, c.CommandPath())))
	}
	line(".SH DESCRIPTION")
	body, rest := splitSections(c.Long)
	if strings.TrimSpace(body) == "" {
		body = c.Short
	}
	manText(&b, body)
	if subs := slices.DeleteFunc(documented(c)[1:], func(s *cobra.Command) bool { return s.Parent() != c }); len(subs) > 0 {
		line(".SH VERBS")
		for _, sub := range subs {
			line(".TP\n\\fB%s\\fR(1)\n%s", roff(pageName(sub)), roff(sub.Short))
		}
	}
	manFlags(&b, "OPTIONS", c.NonInheritedFlags())
	if c.Runnable() {
		manFlags(&b, "OPTIONS OF EVERY VERB", c.InheritedFlags())
	}
	if c.Example != "" {
		line(".SH EXAMPLES")
		manText(&b, c.Example)
	}
	manText(&b, rest)
	line(".SH SEE ALSO")
	see := []string{`\fBliveupd.toml\fR(5)`}
	if p := c.Parent(); p != nil {
		see = append(see, fmt.Sprintf(`\fB%s\fR(1)`, roff(pageName(p))))
	}
	line("%s", strings.Join(see, ", "))
	return b.Bytes()
}

// splitSections parts a help text at its first section.
func splitSections(text string) (body, rest string) {
	at := 0
	for l := range strings.Lines(text) {
		if heading.MatchString(strings.TrimSuffix(l, "\n")) {
			return text[:at], text[at:]
		}
		at += len(l)
	}
	return text, ""
}

// manText writes plain text: paragraphs are filled, indented lines stay as they are.
func manText(b *bytes.Buffer, text string) {
	block := false
	blank := 0 // empty lines of a block that may be its end
	end := func() {
		if block {
			b.WriteString(".EE\n.RE\n")
		}
		block, blank = false, 0
	}
	for l := range strings.Lines(strings.Trim(text, "\n")) {
		l = strings.TrimRight(l, "\n")
		switch {
		case l == "" && !block:
			b.WriteString(".PP\n")
		case l == "":
			blank++
		case heading.MatchString(l):
			end()
			b.WriteString(".SH " + l + "\n")
		case !block && listed.MatchString(l):
			m := listed.FindStringSubmatch(l)
			b.WriteString(".TP\n\\fB" + m[1] + "\\fR\n" + roff(m[2]) + "\n")
		case strings.HasPrefix(l, "  "):
			if !block {
				b.WriteString(".RS 2\n.EX\n")
			}
			block = true
			b.WriteString(strings.Repeat("\n", blank))
			blank = 0
			b.WriteString(roff(strings.TrimPrefix(l, "  ")) + "\n")
		default:
			if block {
				end()
				b.WriteString(".PP\n")
			}
			b.WriteString(roff(strings.TrimLeft(l, " ")) + "\n")
		}
	}
	end()
}

func manFlags(b *bytes.Buffer, title string, flags *pflag.FlagSet) {
	begun := false
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		if !begun {
			begun = true
			b.WriteString(".SH " + title + "\n")
		}
		variable, usage := pflag.UnquoteUsage(f)
		b.WriteString(".TP\n")
		if f.Shorthand != "" {
			fmt.Fprintf(b, `\fB\-%s\fR, `, f.Shorthand)
		}
		fmt.Fprintf(b, `\fB\-\-%s\fR`, roff(f.Name))
		if variable != "" {
			fmt.Fprintf(b, `=\fI%s\fR`, roff(variable))
		}
		text := roff(usage)
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "[]" && f.DefValue != "0" {
			text += " (default " + roff(f.DefValue) + ")"
		}
		b.WriteString("\n" + text + "\n")
	})
}
