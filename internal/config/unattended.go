package config

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/liveupd/liveupd/change"
)

// Unattended is the table [unattended]: what liveupd may do when nobody is there. Zero
// values are "not said"; what they stand for is in docs/unattended.md.
type Unattended struct {
	Enabled bool     `toml:"enabled"`
	Max     string   `toml:"max"`     // a rung of the ladder up to daemon-reexec; restart where it is empty
	Windows []window `toml:"windows"` // local times; none: always
	Reboot  string   `toml:"reboot"`  // never (""), window or auto
	// RebootDelay is how long who is logged in is warned before a reboot.
	RebootDelay duration   `toml:"reboot_delay"`
	Never       []unitGlob `toml:"never"` // units that are not interrupted by any unattended run
	Groups      []Group    `toml:"group"`
	// OnBattery and OnMetered permit a run on battery, and over a network that costs.
	OnBattery bool   `toml:"on_battery"`
	OnMetered bool   `toml:"on_metered"`
	Metered   string `toml:"metered"` // auto (""), yes or no: whether the network costs

	Pre           []string `toml:"pre"` // command lines, the program first
	Post          []string `toml:"post"`
	Canary        []string `toml:"canary"`
	OnFailure     []string `toml:"on_failure"`
	OnChange      []string `toml:"on_change"`
	HookTimeout   duration `toml:"hook_timeout"`
	CanaryTimeout duration `toml:"canary_timeout"`
	Settle        duration `toml:"settle"` // between the restarts and the canary

	Mail   string `toml:"mail"`    // an address
	MailOn string `toml:"mail_on"` // failure (""), change or always

	Metrics string `toml:"metrics"` // a file for a textfile collector
	NoMotd  bool   `toml:"no_motd"`

	BackOff duration `toml:"backoff"` // after the first failure of an update; doubled by each further one
	Limit   duration `toml:"limit"`   // how long a run may take up to its commit
	Stall   duration `toml:"stall"`   // how long a stopped worker is left alone
	Wait    duration `toml:"wait"`    // how long a lock of others is waited for

	FullUpgrade  bool     `toml:"full_upgrade"` // apt's
	OnlySecurity bool     `toml:"only_security"`
	AutoRemove   bool     `toml:"autoremove"`
	Hold         []string `toml:"hold"`
}

// Group are units that are restarted together, after those of the groups before it.
type Group struct {
	Name   string     `toml:"name"`
	Units  []unitGlob `toml:"units"`
	Wait   duration   `toml:"wait"`   // before its canary, in place of settle
	Canary []string   `toml:"canary"` // in place of the table's
}

// Or gives the time that was said, or another.
func (d duration) Or(other time.Duration) time.Duration {
	if d.Set {
		return d.Time
	}
	return other
}

type duration struct {
	Time time.Duration
	Set  bool
}

// UnmarshalText reads 90s, 15m, 36h or 2d.
func (d *duration) UnmarshalText(b []byte) error {
	s := string(b)
	var err error
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if d.Time, err = time.ParseDuration(days + "h"); err == nil {
			d.Time *= 24
		}
	} else {
		d.Time, err = time.ParseDuration(s)
	}
	if err != nil || d.Time < 0 || d.Time > 366*24*time.Hour {
		return fmt.Errorf("%q is no length of time: one reads 90s, 15m, 36h or 2d", s)
	}
	d.Set = true
	return nil
}

// Windows gives the windows as everything else has them.
func (u *Unattended) windows() []change.Window {
	var out []change.Window
	for _, w := range u.Windows {
		out = append(out, change.Window(w))
	}
	return out
}

// Windows are the times at which the table allows a run; none: always.
func (c *Config) Windows() []change.Window { return c.Unattended.windows() }

// Names are the names of a group's units, or patterns of names.
func (g *Group) Names() []string { return globTexts(g.Units) }

// NeverUnits are the names in never, or patterns.
func (u *Unattended) NeverUnits() []string { return globTexts(u.Never) }

func globTexts(globs []unitGlob) []string {
	var out []string
	for _, g := range globs {
		out = append(out, g.text)
	}
	return out
}

// Most is the highest rung that an unattended run may do.
func (u *Unattended) Most() change.Action {
	a := change.ActionRestart
	if u.Max != "" {
		_ = a.UnmarshalText([]byte(u.Max)) // it was looked at when it was read
	}
	return a
}

// check refuses what makes no sense; the error names the setting.
func (u *Unattended) check() error {
	in := func(name, value string, known ...string) error {
		if value != "" && !slices.Contains(known, value) {
			return fmt.Errorf("unattended.%s = %q is none of %s", name, value, strings.Join(known, ", "))
		}
		return nil
	}
	rungs := []string{"none", "daemon-reload", "reload", "restart", "daemon-reexec"}
	if slices.Contains([]string{"soft-reboot", "kexec", "reboot"}, u.Max) {
		return fmt.Errorf("unattended.max = %q: a reboot is allowed by unattended.reboot; max is one of %s", u.Max, strings.Join(rungs, ", "))
	}
	err := errors.Join(
		in("max", u.Max, rungs...), in("reboot", u.Reboot, "never", "window", "auto"),
		in("metered", u.Metered, "auto", "yes", "no"), in("mail_on", u.MailOn, "failure", "change", "always"),
	)
	if err != nil {
		return err
	}
	for name, d := range map[string]duration{
		"hook_timeout": u.HookTimeout, "canary_timeout": u.CanaryTimeout, "limit": u.Limit, "stall": u.Stall,
	} {
		if d.Set && d.Time < time.Second {
			return fmt.Errorf("unattended.%s is too short: it is 1s at least", name)
		}
	}
	for name, argv := range map[string][]string{
		"pre": u.Pre, "post": u.Post, "canary": u.Canary, "on_failure": u.OnFailure, "on_change": u.OnChange,
	} {
		if err := checkArgv("unattended."+name, argv); err != nil {
			return err
		}
	}
	if u.Metrics != "" && (!path.IsAbs(u.Metrics) || strings.HasSuffix(u.Metrics, "/")) {
		return fmt.Errorf("unattended.metrics = %q is no absolute path of a file", u.Metrics)
	}
	if strings.HasPrefix(u.Mail, "-") || strings.ContainsAny(u.Mail, " \t\r\n,<>") {
		return fmt.Errorf("unattended.mail = %q is no address", u.Mail)
	}
	names := map[string]bool{}
	for i, g := range u.Groups {
		switch {
		case g.Name == "":
			return fmt.Errorf("unattended.group %d has no name", i+1)
		case names[g.Name]:
			return fmt.Errorf("unattended.group: two are called %q", g.Name)
		case len(g.Units) == 0:
			return fmt.Errorf("unattended.group %q has no units", g.Name)
		}
		names[g.Name] = true
		if err := checkArgv("unattended.group.canary of "+g.Name, g.Canary); err != nil {
			return err
		}
	}
	return nil
}

// lacks tells which setting needs another one, that may be in a file read later.
func (u *Unattended) lacks() error {
	if u.Reboot == "window" && len(u.Windows) == 0 {
		return errors.New(`unattended.reboot = "window" needs unattended.windows; say "auto" for whenever a run has ended`)
	}
	return nil
}

// checkArgv wants a program by its whole path: a hook must not depend on a search path.
func checkArgv(name string, argv []string) error {
	if len(argv) > 0 && !path.IsAbs(argv[0]) {
		return fmt.Errorf("%s = %q: its first word is no absolute path of a program", name, argv)
	}
	return nil
}
