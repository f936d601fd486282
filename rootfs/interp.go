package rootfs

import (
	"maps"
	"path"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// wrappers run the program that their arguments name.
var wrappers = wordSet(`nice ionice chrt taskset stdbuf timeout flock setpriv setsid nohup dumb-init tini catatonit
systemd-cat unshare start-stop-daemon runuser chpst numactl prlimit choom setarch linux64 linux32 systemd-inhibit
sudo gosu su-exec setuidgid envuidgid envdir softlimit s6-setuidgid s6-envdir cgexec catchsegv xvfb-run dbus-run-session
time strace unbuffer stdbuf authbind schedtool cpulimit daemonize fakeroot faketime eatmydata jemalloc.sh busybox`)

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
		case base == "ruby" || base == "php" || base == "node" || base == "nodejs" || base == "lua" || base == "tclsh" || base == "wish" || base == "guile" || base == "deno":
			c.scriptArgument(strings.TrimSuffix(base, "js"), real, args)
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
func (c *collector) scriptArgument(lang, interpreter string, args []string) {
	run := func(p string) {
		if c.follow(p, "script", interpreter) != "" {
			c.walkScript(lang, p)
		}
	}
	for i, a := range args {
		switch {
		case a == "-e" || a == "-E" || a == "--eval" || a == "-r":
			return // the program stands in the argument
		case a == "--":
			if i+1 < len(args) {
				run(c.absolute(args[i+1]))
			}
			return
		case strings.HasPrefix(a, "-"):
			continue
		}
		// The operand of an option (-I DIR) is no file.
		if n, err := c.in.t.stat2(c.absolute(a)); err == nil && n.Type == change.Regular {
			run(c.absolute(a))
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
	defer func(dir string) { c.workDir = dir }(c.workDir)
	dir := c.workDir
	for len(args) > 0 {
		a := args[0]
		name, val, isSet := strings.Cut(a, "=")
		switch {
		case (a == "-C" || a == "--chdir") && len(args) > 1:
			dir = c.absolute(args[1])
			args = args[2:]
		case name == "--chdir" && isSet:
			dir = c.absolute(val)
			args = args[1:]
		case a == "-u" || a == "--unset":
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
			c.workDir = dir
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
					c.shellText(args[i+1], real, maps.Clone(c.env), true, true)
				}
				return
			}
		default:
			c.shellScript(c.absolute(a), real)
			return
		}
	}
}

// shellScript reports a script, what it sources, what it becomes (exec), and
// the program that it ends with, for which it waits. Commands that it runs in
// passing are not what its process runs.
func (c *collector) shellScript(p, via string) {
	vars := maps.Clone(c.env)
	vars["0"] = p
	c.sourced(p, via, vars, true)
}

// sourced reads a script, or a part of one that is sourced.
func (c *collector) sourced(p, via string, vars map[string]string, last bool) {
	real := c.follow(p, "script", via)
	if real == "" {
		return
	}
	b, err := c.in.t.ReadFile(real)
	if err != nil {
		c.in.warn.absent(err, "read script", c.in.prefix+real)
		return
	}
	outer := vars["BASH_SOURCE"]
	vars["BASH_SOURCE"] = p
	c.shellText(string(b), real, vars, false, last)
	vars["BASH_SOURCE"] = outer
}

// passing are words that a script may end with and that run nothing.
var passing = wordSet("fi done esac } exit wait true : break return ;;")

func (c *collector) shellText(text, via string, vars map[string]string, direct, last bool) {
	if c.depth++; c.depth > maxDepth {
		c.depth--
		return
	}
	defer func() { c.depth-- }()
	var end simpleCommand
	if last {
		// What is sourced changes the folder of who sources it.
		defer func(dir string) { c.workDir = dir }(c.workDir)
	}
	shellRun(text, vars, func(cmd simpleCommand) {
		name, args := cmd.words[0], cmd.words[1:]
		if !passing[name] {
			end = cmd
		}
		switch {
		case strings.Contains(name, "$"):
		case name == "cd" || name == "pushd":
			c.enter(args)
		case (name == "." || name == "source") && len(args) > 0:
			c.source(args[0], via, vars)
		case cmd.exec, direct && strings.HasPrefix(name, "/"):
			c.withEnv(vars, func() { c.program(name, args, "exec", via) })
		}
	})
	if len(end.words) > 0 && last && !end.exec && !strings.Contains(end.words[0], "$") {
		if p := c.lookPath(end.words[0]); p != "" {
			c.withEnv(vars, func() { c.program(p, end.words[1:], "exec", via) })
		}
	}
}

// enter changes the folder that relative names start from, as a shell's cd does. A folder
// that is not known, or not there, leaves it as it is.
func (c *collector) enter(args []string) {
	for len(args) > 0 && strings.HasPrefix(args[0], "-") && args[0] != "-" {
		args = args[1:]
	}
	if len(args) == 0 || args[0] == "-" || strings.ContainsAny(args[0], "$"+loopMark) {
		return
	}
	if dir := c.absolute(args[0]); c.in.isDir(dir) {
		c.workDir = dir
	}
}

// source follows what a script sources: a path, a name in the search path, or
// the values of a loop.
func (c *collector) source(name, via string, vars map[string]string) {
	if strings.Contains(name, "$") {
		return
	}
	for pattern := range strings.SplitSeq(name, loopMark) {
		if pattern == "" {
			continue
		}
		p := c.absolute(pattern)
		if !strings.Contains(pattern, "/") && !strings.ContainsAny(pattern, "*?[") {
			for _, dir := range searchDirs {
				if n, err := c.in.t.stat2(join(dir, pattern)); err == nil && n.Type == change.Regular {
					p = join(dir, pattern)
					break
				}
			}
		}
		for _, p := range glob(c.in.t, p) {
			if !c.seen[[2]string{c.in.prefix + p, "script"}] {
				c.sourced(p, via, vars, false)
			}
		}
	}
}
