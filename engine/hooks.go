package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/liveupd/liveupd/change"
)

// hookDirs hold the programs that run before and after an update, those that win first.
var hookDirs = []string{"/etc/liveupd/hooks.d", "/run/liveupd/hooks.d", "/usr/lib/liveupd/hooks.d"}

// hookLimit is how long one of them may take.
const hookLimit = 10 * time.Minute

// leftOver are the names that editors and dpkg give to the copies which they leave: no copy
// runs a second time beside what it is a copy of.
var leftOver = regexp.MustCompile(`~$|\.(bak|old|orig|swp|liveupd-new|liveupd-saved|dpkg-[a-z]+|ucf-[a-z]+)$|\.dpkg-divert\..*`)

// hooks lists them in the order of their names, where a name in /etc hides the same one
// elsewhere, and one that cannot be executed (an empty file, a link to /dev/null) just hides it.
func hooks(dirs []string) ([]string, error) {
	byName := map[string]string{}
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cannot list the hooks: %w", err)
		}
		for _, e := range entries {
			if _, hidden := byName[e.Name()]; !hidden && !strings.HasPrefix(e.Name(), ".") && !leftOver.MatchString(e.Name()) {
				byName[e.Name()] = filepath.Join(dir, e.Name())
			}
		}
	}
	var out []string
	for _, name := range byName {
		st, err := os.Stat(name)
		if err != nil {
			return nil, fmt.Errorf("cannot look at the hook: %w", err)
		}
		if !st.Mode().IsRegular() || st.Mode()&0o111 == 0 {
			continue
		}
		if owner, ok := st.Sys().(*syscall.Stat_t); !ok || owner.Uid != 0 || st.Mode().Perm()&0o022 != 0 {
			return nil, change.WithHint(fmt.Errorf("cannot run the hook %s: others than root could have written it", name), "chown root: "+name+"; chmod go-w "+name)
		}
		out = append(out, name)
	}
	slices.SortFunc(out, func(a, b string) int { return strings.Compare(filepath.Base(a), filepath.Base(b)) })
	return out, nil
}

// runHooks calls each hook with "pre" or "post". The first that fails ends it. Another
// tree has no hooks: they are the running system's.
func (s *session) runHooks(ctx context.Context, when string, report *change.Report, ev Events) error {
	if !s.req.Live() {
		return nil
	}
	list, err := hooks(hookDirs)
	if err != nil {
		return err
	}
	for _, name := range list {
		ev.progress("running", 0, 0, "", name+" "+when)
		limited, cancel := context.WithTimeout(ctx, hookLimit)
		cmd := exec.CommandContext(limited, name, when)
		cmd.Dir = "/"
		cmd.Env = []string{
			"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8",
			"LIVEUPD_VERB=" + report.Verb, "LIVEUPD_SOURCE=" + s.req.Source, "LIVEUPD_PLAN=" + report.PlanID,
			"LIVEUPD_ID=" + report.ID, "LIVEUPD_RESULT=" + report.Result,
		}
		cmd.WaitDelay = time.Second // what it leaves behind may hold its output open
		out, err := cmd.CombinedOutput()
		if errors.Is(err, exec.ErrWaitDelay) {
			err = nil
		}
		if limited.Err() != nil && ctx.Err() == nil {
			err = fmt.Errorf("it did not end within %s", hookLimit)
		}
		cancel()
		if err != nil {
			return fmt.Errorf("the hook %s %s failed: %w%s", name, when, err, quoteOutput(out))
		}
	}
	return nil
}

// preHooks runs what comes before an update. A failure refuses the update; otherwise
// post runs what comes after it, and tells of failures as warnings.
func (s *session) preHooks(ctx context.Context, report *change.Report, ev Events) (post func(), err error) {
	if err := s.runHooks(ctx, "pre", report, ev); err != nil {
		if ctx.Err() != nil {
			return nil, change.WithHint(fmt.Errorf("interrupted before the commit point: %w", ErrNothingCommitted), "run the same command again")
		}
		return nil, fmt.Errorf("%w; %w", err, ErrNothingCommitted)
	}
	return func() {
		if err := s.runHooks(context.WithoutCancel(ctx), "post", report, ev); err != nil {
			s.warnings = append(s.warnings, err.Error())
		}
	}, nil
}
