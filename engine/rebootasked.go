package engine

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The files by which Debian's packages ask for a reboot; unattended-upgrades and the message
// of the day read them. In the sandbox they were written to a /run that is gone.
const (
	rebootAsked   = "reboot-required"
	rebootAskedBy = "reboot-required.pkgs"
)

// askReboot notes that packages want a reboot; dir is /run.
func askReboot(dir string, packages []string) error {
	if len(packages) == 0 {
		return nil
	}
	names, err := askedBy(dir)
	if err != nil {
		return err
	}
	for _, p := range packages {
		if !slices.Contains(names, p) {
			names = append(names, p)
		}
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, rebootAsked), []byte("*** System restart required ***\n"), 0o644),
		os.WriteFile(filepath.Join(dir, rebootAskedBy), []byte(strings.Join(names, "\n")+"\n"), 0o644),
	)
}

// withdrawReboot takes that back for packages that are the old ones again.
func withdrawReboot(dir string, packages []string) error {
	names, err := askedBy(dir)
	if err != nil || len(packages) == 0 {
		return err
	}
	before := len(names)
	names = slices.DeleteFunc(names, func(name string) bool { return slices.Contains(packages, name) })
	switch {
	case len(names) == before:
		return nil
	case len(names) > 0:
		return os.WriteFile(filepath.Join(dir, rebootAskedBy), []byte(strings.Join(names, "\n")+"\n"), 0o644)
	}
	for _, name := range []string{rebootAskedBy, rebootAsked} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func askedBy(dir string) ([]string, error) {
	data, err := os.ReadFile(filepath.Join(dir, rebootAskedBy))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return strings.Fields(string(data)), nil
}
