package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// release is what this build calls itself.
type release struct {
	version string    // upstream's
	time    time.Time // of everything in the package
}

// debian is the package's version. Its revision is that of this packaging.
func (r release) debian() string { return r.version + "-1" }

var upstreamVersion = regexp.MustCompile(`^[0-9][A-Za-z0-9.+~]*$`)

// findRelease reads the version and the time from git: a tag vX.Y.Z, with the commit
// behind it where there are any; the commit's date where there is no tag, which sorts
// before all releases. Without git the time is SOURCE_DATE_EPOCH, else that of the newest
// file of the source.
func findRelease(ctx context.Context, source, version string) (release, error) {
	r := release{version: version}
	if version != "" && !upstreamVersion.MatchString(version) {
		return r, fmt.Errorf("%q is no version: digits first, then letters, digits and . + ~", version)
	}
	git := func(args ...string) (string, error) { return output(ctx, source, nil, "git", args...) }
	var commit, dirty string
	if seconds, err := git("log", "-1", "--format=%ct"); err == nil {
		if r.time, err = unix(seconds); err != nil {
			return r, err
		}
		if commit, err = git("rev-parse", "--short=10", "HEAD"); err != nil {
			return r, err
		}
		if dirty, err = git("status", "--porcelain"); err != nil {
			return r, err
		}
	}
	if epoch := os.Getenv("SOURCE_DATE_EPOCH"); epoch != "" {
		var err error
		if r.time, err = unix(epoch); err != nil {
			return r, fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
		}
	}
	if r.time.IsZero() {
		var err error
		if r.time, err = newest(source); err != nil {
			return r, err
		}
	}
	if version != "" {
		return r, nil
	}
	date := r.time.Format("20060102.150405")
	if commit == "" {
		r.version = "0~" + date
	} else {
		r.version = "0~git" + date + "." + commit
		tag, err := git("describe", "--tags", "--abbrev=0", "--match", "v[0-9]*")
		if err == nil {
			behind, err := git("rev-list", "--count", tag+"..HEAD")
			if err != nil {
				return r, err
			}
			r.version = strings.ReplaceAll(strings.TrimPrefix(tag, "v"), "-", "~")
			if behind != "0" {
				r.version += "+git" + date + "." + commit
			}
		}
	}
	if dirty != "" {
		r.version += "+local" // not what the commit says
	}
	if !upstreamVersion.MatchString(r.version) {
		return r, fmt.Errorf("the tag gives the version %q, which is none: give -version", r.version)
	}
	return r, nil
}

func unix(seconds string) (time.Time, error) {
	n, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("%q is no number of seconds", seconds)
	}
	return time.Unix(n, 0).UTC(), nil
}

func newest(source string) (time.Time, error) {
	var at time.Time
	err := filepath.WalkDir(source, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() && (e.Name() == "bin" || strings.HasPrefix(e.Name(), ".") && name != source) {
			return filepath.SkipDir
		}
		if st, err := e.Info(); err == nil && e.Type().IsRegular() && st.ModTime().After(at) {
			at = st.ModTime()
		}
		return nil
	})
	if err == nil && at.IsZero() {
		err = errors.New("there is no file in the source")
	}
	return at.UTC().Truncate(time.Second), err
}
