package machine

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// Programs builds liveupd, liveupd-recover and liveupd-sandbox as they are shipped (static), once for a
// test binary, and returns their paths. They lie in the cache under the digest of
// their content: a test that still runs an older build is not disturbed.
func Programs(t testing.TB) []string {
	t.Helper()
	paths, err := buildPrograms()
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// Program is the path of one of them by its name.
func Program(t testing.TB, name string) string {
	t.Helper()
	for _, path := range Programs(t) {
		if filepath.Base(path) == name {
			return path
		}
	}
	t.Fatalf("no program is called %s", name)
	return ""
}

var buildPrograms = sync.OnceValues(func() ([]string, error) {
	store := filepath.Join(CacheDir(), "programs")
	if err := os.MkdirAll(store, 0o755); err != nil {
		return nil, err
	}
	if err := forgetOld(store); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(store, "new-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	var paths []string
	digest := sha256.New()
	for _, name := range []string{"liveupd", "liveupd-recover", "liveupd-sandbox"} {
		_, err := command("env", "CGO_ENABLED=0", "go", "build", "-C", filepath.Dir(testsDir()), "-trimpath", "-o", filepath.Join(dir, name), "./cmd/"+name)
		if err != nil {
			return nil, err
		}
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		digest.Write(b)
		paths = append(paths, name)
	}
	final := filepath.Join(store, hex.EncodeToString(digest.Sum(nil))[:16])
	if err := os.Rename(dir, final); err != nil && !exists(filepath.Join(final, "liveupd")) {
		return nil, err
	}
	for i, name := range paths {
		paths[i] = filepath.Join(final, name)
	}
	now := time.Now()
	return paths, os.Chtimes(final, now, now)
})

// forgetOld removes what no test binary of the last day has used.
func forgetOld(store string) error {
	entries, err := os.ReadDir(store)
	if err != nil {
		return err
	}
	for _, e := range entries {
		info, err := e.Info()
		if err == nil && time.Since(info.ModTime()) > 24*time.Hour {
			if err := os.RemoveAll(filepath.Join(store, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}
