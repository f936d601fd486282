package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// documents lays down what goes to /usr/share/doc/liveupd.
func (b *build) documents(ctx context.Context) error {
	if err := b.readModules(ctx); err != nil {
		return err
	}
	copyright, notices, err := b.copyright()
	if err != nil {
		return err
	}
	b.tree.add(doc("copyright"), 0o644, copyright)
	if err := b.tree.addCompressed(doc("NOTICE"), notices); err != nil {
		return err
	}
	changelog, err := b.changelog()
	if err != nil {
		return err
	}
	if err := b.tree.addCompressed(doc("changelog.Debian"), changelog); err != nil {
		return err
	}
	pages, err := filepath.Glob(filepath.Join(b.source, "docs/*.md"))
	if err != nil {
		return err
	}
	for _, page := range append(pages, filepath.Join(b.source, "README.md")) {
		text, err := os.ReadFile(page)
		if err != nil {
			return err
		}
		if err := b.tree.addCompressed(doc(filepath.Base(page)), text); err != nil {
			return err
		}
	}
	sbom, err := b.sbom()
	if err != nil {
		return err
	}
	b.tree.add(sbomName, 0o644, sbom)
	return nil
}

// changelog is in Debian's form: an entry for what is unreleased, one for each release.
func (b *build) changelog() ([]byte, error) {
	dirs, err := filepath.Glob(filepath.Join(b.source, "changelog/*_*"))
	if err != nil {
		return nil, err
	}
	slices.SortFunc(dirs, func(a, b string) int {
		_, da, _ := strings.Cut(filepath.Base(a), "_")
		_, db, _ := strings.Cut(filepath.Base(b), "_")
		return strings.Compare(db, da)
	})
	var out bytes.Buffer
	add := func(dir, version string, at time.Time) error {
		titles, err := changes(dir)
		if err != nil || len(titles) == 0 {
			return err
		}
		fmt.Fprintf(&out, "liveupd (%s) unstable; urgency=medium\n\n", version)
		for _, title := range titles {
			wrapEntry(&out, title)
		}
		fmt.Fprintf(&out, "\n -- %s  %s\n\n", maintainer, at.Format(time.RFC1123Z))
		return nil
	}
	if err := add(filepath.Join(b.source, "changelog/unreleased"), b.release.debian(), b.release.time); err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		version, date, _ := strings.Cut(filepath.Base(dir), "_")
		at, err := time.Parse("2006-01-02", date)
		if err != nil {
			return nil, fmt.Errorf("the folder %s has no date: %w", dir, err)
		}
		if err := add(dir, version+"-1", at); err != nil {
			return nil, err
		}
	}
	if out.Len() == 0 {
		fmt.Fprintf(&out, "liveupd (%s) unstable; urgency=medium\n\n  * New upstream version.\n\n -- %s  %s\n", b.release.debian(), maintainer, b.release.time.Format(time.RFC1123Z))
	}
	return bytes.TrimRight(out.Bytes(), "\n"), nil
}

// wrapEntry writes a title in lines of at most 80 characters.
func wrapEntry(out *bytes.Buffer, title string) {
	line := "  *"
	for word := range strings.FieldsSeq(title) {
		if len(line)+1+len(word) > 80 {
			fmt.Fprintln(out, line)
			line = "   "
		}
		line += " " + word
	}
	fmt.Fprintln(out, line)
}

// changes are the titles of a folder of the changelog, those that matter most first.
func changes(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var titles []string
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		title, _, _ := strings.Cut(string(text), "\n")
		titles = append(titles, title)
	}
	order := []string{"Security", "Bugfix", "Change", "Enhancement"}
	rank := func(title string) int {
		kind, _, _ := strings.Cut(title, ":")
		return slices.Index(order, kind)
	}
	slices.SortStableFunc(titles, func(a, b string) int { return rank(a) - rank(b) })
	return titles, nil
}
