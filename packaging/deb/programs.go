package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/liveupd/liveupd/recovery"
)

// programPlaces says where each program goes: what persons call is in PATH.
var programPlaces = map[string]string{
	"liveupd":         "usr/bin",
	"liveupd-recover": recovery.LibDir,
	"liveupd-sandbox": recovery.LibDir,
}

// compile builds one program, static, for an architecture.
func (b *build) compile(ctx context.Context, name, arch, to string) error {
	// No commit is stamped: a program that did not change is the same file in the next
	// version, and no initrd has to be made anew for it. The version is liveupd's to tell.
	flags := "-s -w"
	if name == "liveupd" {
		flags += " -X main.version=" + b.release.debian()
	}
	env := []string{"CGO_ENABLED=0", "GOOS=linux", "GOARCH=" + arch, "GOAMD64=v1", "GOARM64=v8.0", "GOFLAGS=-mod=readonly", "GOEXPERIMENT=", "GOWORK=off"}
	_, err := output(ctx, b.source, env, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags="+flags, "-o", to, "./cmd/"+name)
	return err
}

func (b *build) programs(ctx context.Context) error {
	b.tree = tree{}
	for name, dir := range programPlaces {
		file := filepath.Join(b.work, name)
		if err := b.compile(ctx, name, b.arch, file); err != nil {
			return err
		}
		b.tree[filepath.Join(dir, name)] = entry{mode: 0o755, from: file}
	}
	return nil
}

// pages makes the man pages and the completions, by the program's own word.
func (b *build) pages(ctx context.Context) error {
	arch, err := output(ctx, b.source, nil, "go", "env", "GOHOSTARCH")
	if err != nil {
		return err
	}
	native := filepath.Join(b.work, "liveupd")
	if arch != b.arch {
		native = filepath.Join(b.work, "native")
		if err := b.compile(ctx, "liveupd", arch, native); err != nil {
			return err
		}
	}
	epoch := fmt.Sprintf("SOURCE_DATE_EPOCH=%d", b.release.time.Unix())
	made := filepath.Join(b.work, "man")
	if err := os.Mkdir(made, 0o755); err != nil {
		return err
	}
	if _, err := output(ctx, b.source, []string{epoch}, native, "man-pages", made); err != nil {
		return err
	}
	for _, dir := range []string{made, filepath.Join(b.source, "packaging/man")} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			text, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				return err
			}
			page := strings.ReplaceAll(string(text), "@DATE@", b.release.time.Format("2006-01-02"))
			page = strings.ReplaceAll(page, "@VERSION@", b.release.version)
			section := strings.TrimPrefix(filepath.Ext(e.Name()), ".")
			if err := b.tree.addCompressed("usr/share/man/man"+section+"/"+e.Name(), []byte(page)); err != nil {
				return err
			}
		}
	}
	for shell, at := range map[string]string{
		"bash": "usr/share/bash-completion/completions/liveupd",
		"zsh":  "usr/share/zsh/vendor-completions/_liveupd",
		"fish": "usr/share/fish/vendor_completions.d/liveupd.fish",
	} {
		text, err := output(ctx, b.source, nil, native, "completion", shell)
		if err != nil {
			return err
		}
		b.tree.add(at, 0o644, []byte(text+"\n"))
	}
	return nil
}
