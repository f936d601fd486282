// Package config reads liveupd's configuration in the systemd way:
// liveupd/liveupd.toml of /etc, else /run, else /usr/lib, then all
// liveupd/liveupd.toml.d/*.toml of the three in the order of their file
// names, where a name in /etc hides the same name in /run and /usr/lib; what
// comes later wins.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/pelletier/go-toml/v2"

	"github.com/liveupd/liveupd/change"
)

// Config is what the administrator says. Zero values are "not said".
type Config struct {
	Source string `toml:"source"` // KIND:WHERE
	Max    string `toml:"max"`    // a rung of the ladder
	Keep   int    `toml:"keep"`   // generations kept for a rollback
	// Quiesce says when affected units stand still for the swap: auto, always or never.
	Quiesce string `toml:"quiesce"`
	// QuiesceFiles is how many changed files of one unit auto takes for enough.
	QuiesceFiles int `toml:"quiesce_files"`
	// Conffiles says which version stays of a package's configuration file that the
	// machine changed: old, its own, or new.
	Conffiles string `toml:"conffiles"`
	// CacheMax is how much sandboxes leave on the disk for the next run: 512M, 2G, 0 for nothing.
	CacheMax string `toml:"cache_max"`
	// LiveData says what becomes of a package that changes data in use: refuse, or after:
	// it is configured on the live system, after the commit.
	LiveData string `toml:"live_data"`
	// Unattended is what may be done when nobody is there.
	Unattended Unattended `toml:"unattended"`
	// Guard watches what the machine is reached by, Health the units.
	Guard  Guard  `toml:"guard"`
	Health Health `toml:"health"`
}

// levels are the configuration folders, the strongest first.
var levels = []string{"etc", "run", "usr/lib"}

// Load reads the configuration below root. An absent configuration is an
// empty one; an unknown key or a malformed value is an error that names the
// file and the line.
func Load(root string) (*Config, error) {
	c, err := load(root)
	if err != nil {
		return nil, change.WithHint(err, "mend the file: liveupd.toml(5) has all settings")
	}
	return c, nil
}

func load(root string) (*Config, error) {
	c := new(Config)
	// What settings lack of each other is known when all files are read; the file that
	// left it so is to be named.
	var lacks error
	read := func(name string) (found bool, err error) {
		if found, err = c.read(name); err != nil || !found {
			return found, err
		}
		switch err := c.Unattended.lacks(); {
		case err == nil:
			lacks = nil
		case lacks == nil:
			lacks = fmt.Errorf("cannot read %s: %w", name, err)
		}
		return true, nil
	}
	for _, level := range levels {
		found, err := read(filepath.Join(root, level, "liveupd/liveupd.toml"))
		if err != nil {
			return nil, err
		}
		if found {
			break
		}
	}
	dropIns := map[string]string{}
	for _, level := range levels {
		files, err := filepath.Glob(filepath.Join(root, level, "liveupd/liveupd.toml.d/*.toml"))
		if err != nil {
			return nil, fmt.Errorf("cannot list the configuration: %w", err)
		}
		for _, f := range files {
			if _, hidden := dropIns[filepath.Base(f)]; !hidden {
				dropIns[filepath.Base(f)] = f
			}
		}
	}
	names := make([]string, 0, len(dropIns))
	for name := range dropIns {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if _, err := read(dropIns[name]); err != nil {
			return nil, err
		}
	}
	if lacks != nil {
		return nil, lacks
	}
	return c, nil
}

func (c *Config) read(name string) (found bool, err error) {
	data, err := os.ReadFile(name)
	// A root that is a file is named by who opens it.
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("cannot read the configuration: %w", err)
	}
	dec := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields()
	if err := dec.Decode(c); err != nil {
		if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok {
			return true, fmt.Errorf("cannot read %s: unknown %s", name, unknown(strict))
		}
		if bad, ok := errors.AsType[*toml.DecodeError](err); ok {
			row, col := bad.Position()
			return true, fmt.Errorf("cannot read %s: line %d, column %d: %w", name, row, col, malformed(bad))
		}
		return true, fmt.Errorf("cannot read %s: %w", name, err)
	}
	if c.Max != "" {
		var a change.Action
		if err := a.UnmarshalText([]byte(c.Max)); err != nil || !slices.Contains(change.Ladder(), a) {
			return true, fmt.Errorf("cannot read %s: max = %q is no rung of the ladder %v", name, c.Max, change.Ladder())
		}
	}
	if !slices.Contains([]string{"", "auto", "always", "never"}, c.Quiesce) {
		return true, fmt.Errorf("cannot read %s: quiesce = %q is none of auto, always, never", name, c.Quiesce)
	}
	if !slices.Contains([]string{"", "old", "new"}, c.Conffiles) {
		return true, fmt.Errorf("cannot read %s: conffiles = %q is none of old, new", name, c.Conffiles)
	}
	if _, err := ParseSize(c.CacheMax); err != nil && c.CacheMax != "0" {
		return true, fmt.Errorf("cannot read %s: cache_max = %q is no size such as 512M or 2G", name, c.CacheMax)
	}
	if !slices.Contains([]string{"", "refuse", "after"}, c.LiveData) {
		return true, fmt.Errorf("cannot read %s: live_data = %q is none of refuse, after", name, c.LiveData)
	}
	if c.QuiesceFiles < 0 {
		return true, fmt.Errorf("cannot read %s: quiesce_files = %d is negative", name, c.QuiesceFiles)
	}
	if err := errors.Join(c.Unattended.check(), c.Guard.wrong(), c.Health.wrong()); err != nil {
		return true, fmt.Errorf("cannot read %s: %w", name, err)
	}
	if c.Keep < 0 {
		return true, fmt.Errorf("cannot read %s: keep = %d is negative", name, c.Keep)
	}
	return true, nil
}
