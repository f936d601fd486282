package main

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/liveupd/liveupd/engine"
	"github.com/liveupd/liveupd/internal/config"
	"github.com/liveupd/liveupd/source/apt"
)

// packageFlags are those of apply that are the package manager's.
var packageFlags = []string{"full-upgrade", "only-security", "hold", "autoremove", "no-refresh", "conffiles", "live-data"}

// packages are apply's options for the package manager.
type packages struct {
	apt       apt.Options
	conffiles string
	liveData  string
}

func (p *packages) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&p.apt.Full, "full-upgrade", false, "apt: upgrade also what needs other packages removed")
	f.BoolVar(&p.apt.OnlySecurity, "only-security", false, "apt: upgrade from the archives of security updates only")
	f.StringSliceVar(&p.apt.Hold, "hold", nil, "apt: leave the package `NAME` as it is (may be repeated)")
	f.BoolVar(&p.apt.AutoRemove, "autoremove", false, "apt: remove what was installed for others alone and is needed no more")
	f.BoolVar(&p.apt.NoRefresh, "no-refresh", false, "apt: use the package lists as they are")
	f.StringVar(&p.conffiles, "conffiles", "", "apt: `WHICH` version of a changed configuration file stays: old (the machine's) or new (the package's) (default old)")
	f.StringVar(&p.liveData, "live-data", "", "apt: `WHAT` becomes of a package that changes data in use: refuse, or after: it is configured on the live system after the commit, which cannot be taken back (default refuse)")
}

// request takes the flags and arguments over into a request.
func (p *packages) request(cmd *cobra.Command, root string, args []string, req *engine.Request) error {
	given := len(args) > 0
	for _, name := range packageFlags {
		given = given || cmd.Flags().Changed(name)
	}
	for _, arg := range args {
		if !strings.HasSuffix(arg, ".deb") && !strings.Contains(arg, "/") || isSuite(arg) {
			p.apt.Packages = append(p.apt.Packages, arg)
			continue
		}
		file, err := filepath.Abs(arg)
		if err != nil {
			return engine.Usage(err)
		}
		p.apt.Debs = append(p.apt.Debs, file)
	}
	if req.Source == "" && given {
		req.Source = "apt"
	}
	kind, where, _ := strings.Cut(req.Source, ":")
	if kind != "apt" && kind != "deb" && req.Source != "" {
		if given {
			return engine.Usage(fmt.Errorf("packages and the options of apt go with --source apt or deb:FILE, not with %s", req.Source))
		}
		return nil
	}
	if p.conffiles == "" {
		cfg, err := config.Load(root)
		if err != nil {
			return err
		}
		p.conffiles = cmp.Or(cfg.Conffiles, "old")
	}
	if p.conffiles != "old" && p.conffiles != "new" {
		return engine.Usage(fmt.Errorf("--conffiles takes old or new, not %q", p.conffiles))
	}
	if p.liveData == "" {
		cfg, err := config.Load(root)
		if err != nil {
			return err
		}
		p.liveData = cmp.Or(cfg.LiveData, "refuse")
	}
	if p.liveData != "refuse" && p.liveData != "after" {
		return engine.Usage(fmt.Errorf("--live-data takes refuse or after, not %q", p.liveData))
	}
	files := p.apt.Debs
	if kind == "deb" && where != "" {
		files = append([]string{where}, files...)
	}
	for _, f := range files {
		if st, err := os.Stat(f); err != nil || !st.Mode().IsRegular() {
			return engine.Usage(fmt.Errorf("there is no package file %s", f))
		}
	}
	p.apt.LiveAfter = p.liveData == "after"
	p.apt.NewConf = p.conffiles == "new"
	p.apt.Unattended = req.Unattended && len(args) == 0 && kind != "deb"
	if err := p.apt.Check(); err != nil {
		return engine.Usage(err)
	}
	req.Apt, req.Env = &p.apt, os.Environ()
	return nil
}

// isSuite tells apt's NAME/SUITE from a file.
func isSuite(arg string) bool {
	name, suite, ok := strings.Cut(arg, "/")
	return ok && name != "" && name != "." && name != ".." && suite != "" && !strings.Contains(suite, "/") && !strings.HasSuffix(suite, ".deb")
}
