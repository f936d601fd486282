package main

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// module is a Go module of which the programs hold a part, as they say themselves.
type module struct {
	path, version string
	sum           string // go.sum's
	dir           string // its source, in the module cache
	programs      []string
	licences      []string // SPDX names
	texts         []string // of the licence files, by their names
	notice        string
	holders       []string // the lines of copyright
}

// readModules asks the built programs what they hold, and reads the licences of that.
func (b *build) readModules(ctx context.Context) error {
	found := map[string]*module{}
	var toolchain string
	for _, name := range slices.Sorted(maps.Keys(programPlaces)) {
		info, err := buildinfo.ReadFile(filepath.Join(b.work, name))
		if err != nil {
			return err
		}
		toolchain = info.GoVersion
		for _, m := range info.Deps {
			if m.Replace != nil {
				return fmt.Errorf("%s holds %s in place of %s: no replacement is packaged", name, m.Replace.Path, m.Path)
			}
			if found[m.Path] == nil {
				found[m.Path] = &module{path: m.Path, version: m.Version, sum: m.Sum}
			}
			found[m.Path].programs = append(found[m.Path].programs, name)
		}
	}
	listing, err := output(ctx, b.source, []string{"GOFLAGS=-mod=readonly", "GOWORK=off"}, "go", "list", "-m", "-json", "all")
	if err != nil {
		return err
	}
	for dec := json.NewDecoder(strings.NewReader(listing)); ; {
		var m struct{ Path, Version, Dir string }
		if err := dec.Decode(&m); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
		if f := found[m.Path]; f != nil && f.version == m.Version {
			f.dir = m.Dir
		}
	}
	goroot, err := output(ctx, b.source, nil, "go", "env", "GOROOT")
	if err != nil {
		return err
	}
	std := module{path: "std", version: strings.TrimPrefix(strings.Fields(toolchain)[0], "go"), dir: goroot, programs: slices.Sorted(maps.Keys(programPlaces))}
	for _, m := range append([]*module{&std}, slices.SortedFunc(maps.Values(found), func(a, b *module) int { return strings.Compare(a.path, b.path) })...) {
		if err := m.readLicences(); err != nil {
			return fmt.Errorf("cannot read the licence of %s %s: %w", m.path, m.version, err)
		}
		b.modules = append(b.modules, *m)
	}
	return nil
}

// licenceMarks are phrases by which the licences that Go modules have are known.
var licenceMarks = []struct{ name, phrase string }{
	{"Apache-2.0", "Apache License"},
	{"MPL-2.0", "Mozilla Public License"},
	{"MIT", "Permission is hereby granted, free of charge"},
	{"ISC", "Permission to use, copy, modify, and/or distribute"},
	{"BSD", "Redistribution and use in source and binary forms"},
}

var blanks = regexp.MustCompile(`\s+`)

// licencesOf names the licences in a text.
func licencesOf(text string) []string {
	flat := blanks.ReplaceAllString(text, " ")
	var out []string
	for _, m := range licenceMarks {
		if !strings.Contains(flat, m.phrase) {
			continue
		}
		name := m.name
		if name == "BSD" {
			name = "BSD-2-Clause"
			if strings.Contains(flat, "Neither the name") || strings.Contains(flat, "The names of its contributors") || strings.Contains(flat, "be used to endorse or promote") {
				name = "BSD-3-Clause"
			}
		}
		out = append(out, name)
	}
	return out
}

var (
	licenceFile   = regexp.MustCompile(`(?i)^(licen[cs]e|copying)([.-].*)?$`)
	copyrightLine = regexp.MustCompile(`(?i)^\W*(copyright (\(c\)|©|[0-9]{4}|the ).*)$`)
)

// readLicences reads the licence files of a module. One that is not understood ends the
// build: what nobody may pass on must not be in the package.
func (m *module) readLicences() error {
	if m.dir == "" {
		return errors.New("its source is not in the module cache: go mod download")
	}
	// Debian's own Go has the licence elsewhere.
	dirs := []string{m.dir}
	if m.path == "std" {
		dirs = append(dirs, "/usr/share/doc/golang-"+strings.Join(strings.Split(m.version, ".")[:2], ".")+"-go", "/usr/share/doc/golang-go")
	}
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			std := m.path == "std" && e.Name() == "copyright"
			notice := strings.EqualFold(strings.TrimSuffix(e.Name(), filepath.Ext(e.Name())), "notice")
			if !e.Type().IsRegular() || !std && !notice && !licenceFile.MatchString(e.Name()) {
				continue
			}
			text, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				return err
			}
			text = bytes.ReplaceAll(text, []byte("\r"), nil)
			if notice {
				m.notice = string(text)
			} else {
				m.texts = append(m.texts, string(text))
				m.licences = append(m.licences, licencesOf(string(text))...)
			}
			for line := range strings.Lines(string(text)) {
				if h := copyrightLine.FindStringSubmatch(strings.TrimSpace(line)); h != nil && !strings.Contains(h[1], "[yyyy]") && !strings.Contains(h[1], "{yyyy}") {
					m.holders = append(m.holders, strings.TrimSuffix(h[1], " All rights reserved."))
				}
			}
		}
		if len(m.licences) > 0 {
			break
		}
	}
	slices.Sort(m.licences)
	m.licences = slices.Compact(m.licences)
	m.holders = slices.Compact(m.holders)
	if len(m.licences) == 0 {
		return errors.New("no file of it is a licence that is known here")
	}
	if len(m.holders) == 0 {
		m.holders = []string{"The authors of " + m.path}
	}
	return nil
}

// expression is what SPDX calls the licences of a module: all of them hold, for parts of it.
func (m *module) expression() string { return strings.Join(m.licences, " AND ") }

// debianSource is the name that Debian's naming rule for Go libraries gives a module.
func (m *module) debianSource() string {
	host, rest, _ := strings.Cut(m.path, "/")
	parts := strings.Split(rest, "/")
	if last := parts[len(parts)-1]; len(parts) > 1 && regexp.MustCompile(`^v[0-9]+$`).MatchString(last) {
		parts = parts[:len(parts)-1]
	}
	// github.com is github; golang.org is golang: the last part of a host's name says nothing.
	name := append(strings.Split(host, ".")[:strings.Count(host, ".")], parts...)
	return strings.ToLower(strings.ReplaceAll("golang-"+strings.Join(name, "-"), "_", "-"))
}

// builtUsing is the field Static-Built-Using. The versions are upstream's: the modules
// come from the Go module proxy, checked by go.sum.
func (b *build) builtUsing() string {
	var out []string
	for _, m := range b.modules {
		name, version := m.debianSource(), strings.TrimPrefix(m.version, "v")
		if m.path == "std" {
			name = "golang-" + strings.Join(strings.Split(version, ".")[:2], ".")
		}
		out = append(out, fmt.Sprintf("%s (= %s)", name, strings.ReplaceAll(version, "-", "~")))
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}
