package rootfs

import (
	"path"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// wrappers run the program that their arguments name.
var wrappers = wordSet(`nice ionice chrt taskset stdbuf timeout flock setpriv setsid nohup dumb-init tini catatonit
systemd-cat unshare start-stop-daemon runuser chpst numactl prlimit choom setarch systemd-inhibit`)

// arguments follows what an interpreter or a wrapper is given to run. invoked
// is the path that it was called by, real where its content is.
func (c *collector) arguments(invoked, real string, args []string) {
	for _, name := range []string{path.Base(real), path.Base(invoked)} {
		switch base := strings.TrimRight(name, "0123456789."); {
		case base == "python" || base == "pypy":
			outer := c.interpreter
			c.interpreter = real
			c.python(invoked, real, args)
			c.interpreter = outer
			return
		case name == "sh" || name == "bash" || name == "dash" || name == "ash" || base == "ksh" || base == "mksh" || base == "zsh":
			c.shell(real, args)
			return
		case base == "perl":
			c.perl(real, args)
			return
		case base == "ruby" || base == "php" || base == "node" || base == "nodejs" || base == "lua" || base == "tclsh" || base == "wish":
			c.scriptArgument(real, args)
			return
		case base == "java":
			c.java(real, args)
			return
		case name == "env":
			c.envCommand(real, args)
			return
		case wrappers[name]:
			c.wrapped(real, args)
			return
		}
	}
}

// scriptArgument reports the script of an interpreter: the first argument that
// is no option and is there.
func (c *collector) scriptArgument(interpreter string, args []string) {
	for i, a := range args {
		switch {
		case a == "-e" || a == "-E" || a == "--eval" || a == "-r":
			return // the program stands in the argument
		case a == "--":
			if i+1 < len(args) {
				c.follow(c.absolute(args[i+1]), "script", interpreter)
			}
			return
		case strings.HasPrefix(a, "-"):
			continue
		}
		// The operand of an option (-I DIR) is no file.
		if n, err := c.in.t.stat2(c.absolute(a)); err == nil && n.Type == change.Regular {
			c.follow(c.absolute(a), "script", interpreter)
			return
		}
	}
}

// java reports the archives of a Java program: -jar and the class path.
func (c *collector) java(interpreter string, args []string) {
	for i := 0; i < len(args); i++ {
		switch a := args[i]; {
		case a == "-jar" && i+1 < len(args):
			c.follow(c.absolute(args[i+1]), "script", interpreter)
			return
		case (a == "-cp" || a == "-classpath" || a == "--class-path" || a == "-p" || a == "--module-path") && i+1 < len(args):
			i++
			for p := range strings.SplitSeq(args[i], ":") {
				if dir, star := strings.CutSuffix(p, "/*"); star {
					for _, jar := range glob(c.in.t, join(c.absolute(dir), "*.jar")) {
						c.follow(jar, "module", interpreter)
					}
				} else if p != "" {
					c.follow(c.absolute(p), "module", interpreter)
				}
			}
		case !strings.HasPrefix(a, "-"):
			return // the main class
		}
	}
}

// envCommand reads env(1): options, assignments, then the command.
func (c *collector) envCommand(via string, args []string) {
	set := map[string]string{}
	for len(args) > 0 {
		a := args[0]
		name, val, isSet := strings.Cut(a, "=")
		switch {
		case a == "-u" || a == "-C" || a == "--unset" || a == "--chdir":
			args = args[min(2, len(args)):]
		case a == "-S" || a == "--split-string":
			if len(args) < 2 {
				return
			}
			args = append(splitWords(args[1]), args[2:]...)
		case strings.HasPrefix(a, "-S"), strings.HasPrefix(a, "-vS"):
			_, text, _ := strings.Cut(a, "S")
			args = append(splitWords(text), args[1:]...)
		case strings.HasPrefix(a, "-"):
			args = args[1:]
		case isSet && nameLen(name) == len(name):
			set[name] = val
			args = args[1:]
		default:
			c.withEnv(set, func() { c.program(a, args[1:], "interpreter", via) })
			return
		}
	}
}

// wrapped reports the program behind a wrapper: the first argument with a path
// that is a program, or else a name that is one.
func (c *collector) wrapped(via string, args []string) {
	for i, a := range args {
		if strings.HasPrefix(a, "-") || a == "" || a[0] >= '0' && a[0] <= '9' {
			continue
		}
		p := c.lookPath(a)
		if p == "" {
			continue
		}
		if n, err := c.in.t.stat2(p); err == nil && n.Type == change.Regular && n.Mode&0o111 != 0 {
			c.program(a, args[i+1:], "exec", via)
			return
		}
	}
}

// shell reads a shell's arguments: a command string, whose programs with a
// path count, or a script.
func (c *collector) shell(real string, args []string) {
	for i := 0; i < len(args); i++ {
		a := args[i]
		switch {
		case a == "-o" || a == "+o" || a == "-O" || a == "--rcfile" || a == "--init-file":
			i++
		case a == "--":
			if i+1 < len(args) {
				c.shellScript(c.absolute(args[i+1]), real)
			}
			return
		case strings.HasPrefix(a, "--"):
		case strings.HasPrefix(a, "-") && len(a) > 1 || strings.HasPrefix(a, "+") && len(a) > 1:
			if !strings.HasPrefix(a, "+") && strings.Contains(a, "c") {
				if i+1 < len(args) {
					c.shellText(args[i+1], real, true)
				}
				return
			}
		default:
			c.shellScript(c.absolute(a), real)
			return
		}
	}
}

// shellScript reports a script, what it sources, and what it becomes (exec).
// Commands that it runs in passing are not what its process runs.
func (c *collector) shellScript(p, via string) {
	real := c.follow(p, "script", via)
	if real == "" {
		return
	}
	b, err := c.in.t.ReadFile(real)
	if err != nil {
		c.in.warn.absent(err, "read script", c.in.prefix+real)
		return
	}
	zero, had := c.env["0"]
	c.env["0"] = p
	c.shellText(string(b), real, false)
	delete(c.env, "0")
	if had {
		c.env["0"] = zero
	}
}

func (c *collector) shellText(text, via string, direct bool) {
	if c.depth++; c.depth > maxDepth {
		c.depth--
		return
	}
	defer func() { c.depth-- }()
	for _, cmd := range shellCommands(text, c.env) {
		name, args := cmd.words[0], cmd.words[1:]
		switch {
		case strings.Contains(name, "$"):
		case (name == "." || name == "source") && len(args) > 0:
			p := args[0]
			if !strings.HasPrefix(p, "/") || strings.Contains(p, "$") || c.seen[[2]string{c.in.prefix + p, "script"}] {
				continue
			}
			c.shellScript(path.Clean(p), via)
		case cmd.exec, direct && strings.HasPrefix(name, "/"):
			c.program(name, args, "exec", via)
		}
	}
}
