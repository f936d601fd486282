package deb

import (
	"bytes"
	"compress/gzip"
	"crypto/sha1" //nolint:gosec // SPDX wants it for each file
	"crypto/sha256"
	"debug/buildinfo"
	"debug/elf"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"

	"github.com/liveupd/liveupd/internal/config"
)

// programs are the package's.
var programs = []string{"usr/bin/liveupd", "usr/lib/liveupd/liveupd-recover", "usr/lib/liveupd/liveupd-sandbox"}

// copySource copies what git knows of the tree, and what it would: not what was built.
func copySource(t *testing.T, to string) {
	t.Helper()
	list, err := exec.Command("git", "-C", "../..", "ls-files", "--cached", "--others", "--exclude-standard", "-z").Output()
	if err != nil { // git does not know this tree
		list = []byte(run(t, "find", "../..", "-path", "../../bin", "-prune", "-o", "-path", "../../.git", "-prune", "-o", "-type", "f", "-printf", `%P\0`))
	}
	for name := range strings.SplitSeq(string(list), "\x00") {
		if name == "" {
			continue
		}
		b, err := os.ReadFile(filepath.Join("../..", name))
		if err != nil {
			continue // one that was removed, and not yet for git
		}
		st, err := os.Stat(filepath.Join("../..", name))
		if err != nil {
			t.Fatal(err)
		}
		at := filepath.Join(to, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, b, st.Mode().Perm()); err != nil {
			t.Fatal(err)
		}
	}
}

// Built twice, in other folders, with another umask, locale, time zone and temporary folder: the
// same bytes. Another time, which the control gives it, is seen.
func TestReproducible(t *testing.T) {
	t.Parallel()
	older, _ := debs(t)
	want, err := os.ReadFile(older)
	if err != nil {
		t.Fatal(err)
	}
	source := filepath.Join(t.TempDir(), "another folder", "with a longer name")
	copySource(t, source)
	build := func(epoch string) []byte {
		t.Helper()
		name, err := tool()
		if err != nil {
			t.Fatal(err)
		}
		out, tmp := t.TempDir(), filepath.Join(t.TempDir(), "tmp")
		if err := os.Mkdir(tmp, 0o700); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/bin/sh", "-euc", `umask 0077; exec "$@"`, "sh", name, "-source", source, "-version", oldVersion, "-level", "0", "-out", out)
		cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH="+epoch, "LC_ALL=tr_TR.UTF-8", "LANG=tr_TR.UTF-8", "TZ=Pacific/Kiritimati", "TMPDIR="+tmp, "GOFLAGS=-buildvcs=auto", "XZ_DEFAULTS=-T0")
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		b, err := os.ReadFile(filepath.Join(out, filepath.Base(older)))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if got := build(epoch); !bytes.Equal(got, want) {
		t.Errorf("two packages of one source differ: %d and %d bytes, %x and %x", len(want), len(got), sha256.Sum256(want), sha256.Sum256(got))
	}
	if got := build("1700000060"); bytes.Equal(got, want) {
		t.Error("another time gives the same package: the comparison shows nothing")
	}
}

// Debian's own check has nothing to say of either architecture, and no override is without its reason.
func TestLintian(t *testing.T) {
	t.Parallel()
	older, _ := debs(t)
	if _, err := exec.LookPath("lintian"); err != nil {
		t.Skip("needs the program lintian (run tests/setup/install.sh)")
	}
	list := []string{older}
	for _, arch := range []string{"amd64", "arm64"} {
		if strings.HasSuffix(older, "_"+arch+".deb") {
			continue
		}
		if !long() {
			continue // a cross build from nothing takes minutes
		}
		other, err := buildDeb("../..", arch, oldVersion, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, other)
	}
	for _, deb := range list {
		out, err := exec.Command("lintian", "--allow-root", "--fail-on", "error,warning", deb).CombinedOutput()
		if err != nil || bytes.Contains(out, []byte("W: ")) || bytes.Contains(out, []byte("E: ")) {
			t.Errorf("lintian: %v\n%s", err, out)
		}
	}
	overrides, err := os.ReadFile("../../packaging/lintian-overrides")
	if err != nil {
		t.Fatal(err)
	}
	before := ""
	for line := range strings.Lines(string(overrides)) {
		if !strings.HasPrefix(line, "#") && !strings.HasPrefix(before, "#") {
			t.Errorf("an override without its reason: %s", line)
		}
		before = line
	}
}

// The SBOM names the modules that the programs hold, each with its version, its licence and
// who holds it, and no others.
func TestSBOM(t *testing.T) {
	t.Parallel()
	older, _ := debs(t)
	root := unpack(t, older)
	b, err := os.ReadFile(filepath.Join(root, "usr/share/doc/liveupd/liveupd.spdx.json"))
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		SPDXVersion, DataLicense, SPDXID, Name, DocumentNamespace string
		CreationInfo                                              struct {
			Created  string
			Creators []string
		}
		Packages []struct {
			SPDXID, Name, VersionInfo, DownloadLocation, LicenseConcluded, Comment string
			ExternalRefs                                                           []struct{ ReferenceType, ReferenceLocator string }
			FilesAnalyzed                                                          bool
			PackageVerificationCode                                                struct {
				PackageVerificationCodeValue         string
				PackageVerificationCodeExcludedFiles []string
			}
		}
		Files []struct {
			SPDXID, FileName string
			Checksums        []struct{ Algorithm, ChecksumValue string }
		}
		Relationships []struct{ SpdxElementID, RelationshipType, RelatedSpdxElement string }
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(&doc); err != nil {
		t.Fatal(err)
	}
	if doc.SPDXVersion != "SPDX-2.3" || doc.DataLicense != "CC0-1.0" || doc.SPDXID != "SPDXRef-DOCUMENT" || doc.Name == "" ||
		!strings.HasPrefix(doc.DocumentNamespace, "https://") || doc.CreationInfo.Created != "2023-11-14T22:13:20Z" || len(doc.CreationInfo.Creators) == 0 {
		t.Errorf("the document's head: %+v", doc)
	}
	known := map[string]bool{"SPDXRef-DOCUMENT": true}
	id := regexp.MustCompile(`^SPDXRef-[A-Za-z0-9.-]+$`)
	note := func(name string) {
		if !id.MatchString(name) || known[name] {
			t.Errorf("the ID %q is malformed, or there twice", name)
		}
		known[name] = true
	}
	modules := map[string]string{} // by ID: path@version
	for _, p := range doc.Packages {
		note(p.SPDXID)
		if p.DownloadLocation == "" || p.LicenseConcluded == "" || len(p.ExternalRefs) != 1 || p.ExternalRefs[0].ReferenceType != "purl" || !strings.HasPrefix(p.ExternalRefs[0].ReferenceLocator, "pkg:") {
			t.Errorf("the package %+v", p)
		}
		if strings.HasPrefix(p.SPDXID, "SPDXRef-Module-") {
			modules[p.SPDXID] = p.Name + "@" + p.VersionInfo + " " + strings.TrimPrefix(p.Comment, "go.sum: ")
		}
	}
	// A file for each that is installed, but for the document itself.
	var installed, listed, sums []string
	for name := range strings.Lines(run(t, "find", root, "-path", root+"/DEBIAN", "-prune", "-o", "-type", "f", "-printf", "./%P\n")) {
		if name = strings.TrimSpace(name); !strings.HasSuffix(name, "/liveupd.spdx.json") {
			installed = append(installed, name)
		}
	}
	for _, f := range doc.Files {
		listed = append(listed, f.FileName)
		for _, c := range f.Checksums {
			if c.Algorithm == "SHA1" {
				sums = append(sums, c.ChecksumValue)
			}
		}
	}
	slices.Sort(installed)
	slices.Sort(listed)
	slices.Sort(sums)
	if d := cmp.Diff(installed, listed); d != "" {
		t.Errorf("the package's files, and those of the SBOM (-package +SBOM):\n%s", d)
	}
	if code := doc.Packages[0].PackageVerificationCode; !doc.Packages[0].FilesAnalyzed ||
		code.PackageVerificationCodeValue != fmt.Sprintf("%x", sha1.Sum([]byte(strings.Join(sums, "")))) || //nolint:gosec // the format's
		!slices.Equal(code.PackageVerificationCodeExcludedFiles, []string{"./usr/share/doc/liveupd/liveupd.spdx.json"}) {
		t.Errorf("the code of the files: %+v", code)
	}
	files := map[string]string{}
	for _, f := range doc.Files {
		note(f.SPDXID)
		files[f.SPDXID] = strings.TrimPrefix(f.FileName, "./")
		content, err := os.ReadFile(filepath.Join(root, f.FileName))
		if err != nil {
			t.Fatal(err)
		}
		sum := fmt.Sprintf("%x", sha256.Sum256(content))
		if i := slices.IndexFunc(f.Checksums, func(c struct{ Algorithm, ChecksumValue string }) bool { return c.Algorithm == "SHA256" }); i < 0 || f.Checksums[i].ChecksumValue != sum {
			t.Errorf("the digest of %s is %s; it says %+v", f.FileName, sum, f.Checksums)
		}
	}
	linked := map[string][]string{}
	for _, r := range doc.Relationships {
		if !known[r.SpdxElementID] || !known[r.RelatedSpdxElement] {
			t.Errorf("a relation of what is not there: %+v", r)
		}
		if r.RelationshipType == "STATIC_LINK" {
			linked[files[r.SpdxElementID]] = append(linked[files[r.SpdxElementID]], modules[r.RelatedSpdxElement])
		}
	}
	want := map[string][]string{}
	for _, name := range programs {
		info, err := buildinfo.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		want[name] = []string{"std@" + strings.TrimPrefix(info.GoVersion, "go") + " "}
		for _, m := range info.Deps {
			want[name] = append(want[name], m.Path+"@"+m.Version+" "+m.Sum)
		}
		slices.Sort(want[name])
		slices.Sort(linked[name])
	}
	if d := cmp.Diff(want, linked); d != "" {
		t.Errorf("what the programs hold, and what the SBOM says (-programs +SBOM):\n%s", d)
	}
	copyright, err := os.ReadFile(filepath.Join(root, "usr/share/doc/liveupd/copyright"))
	if err != nil {
		t.Fatal(err)
	}
	for _, list := range want {
		for _, m := range list {
			at, _, _ := strings.Cut(m, " ")
			if !strings.Contains(string(copyright), "\nFiles: "+at+"/*\nCopyright: ") {
				t.Errorf("the copyright file says nothing of %s", at)
			}
		}
	}
}

// What lies in the package: static programs, each verb's page, all settings explained, a
// configuration that says nothing until somebody changes it.
func TestContents(t *testing.T) {
	t.Parallel()
	older, _ := debs(t)
	root := unpack(t, older)
	for _, name := range programs {
		f, err := elf.Open(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
			t.Errorf("%s needs a loader", name)
		}
		f.Close()
	}
	if out := run(t, filepath.Join(root, "usr/bin/liveupd"), "--version"); out != "liveupd "+oldVersion+"-1" {
		t.Errorf("the version is %q", out)
	}

	read := func(name string) string {
		t.Helper()
		f, err := os.Open(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var r io.Reader = f
		if strings.HasSuffix(name, ".gz") {
			z, err := gzip.NewReader(f)
			if err != nil {
				t.Fatal(err)
			}
			r = z
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	verbs := regexp.MustCompile(`(?m)^  ([a-z]+) +[^ ]`).FindAllStringSubmatch(section(run(t, filepath.Join(root, "usr/bin/liveupd"), "--help"), "Available Commands:"), -1)
	if len(verbs) < 10 {
		t.Fatalf("--help tells of %d verbs", len(verbs))
	}
	for _, v := range verbs {
		if v[1] == "help" {
			continue
		}
		if page := read("usr/share/man/man1/liveupd-" + v[1] + ".1.gz"); !strings.Contains(page, ".SH NAME\nliveupd\\-"+v[1]+" \\- ") || strings.Contains(page, "@VERSION@") {
			t.Errorf("the page of %s is %.200s", v[1], page)
		}
	}
	for _, name := range []string{"usr/share/bash-completion/completions/liveupd", "usr/share/zsh/vendor-completions/_liveupd", "usr/share/fish/vendor_completions.d/liveupd.fish", "usr/lib/systemd/system/liveupd-recover.service", "usr/share/doc/liveupd/changelog.Debian.gz"} {
		if read(name) == "" {
			t.Errorf("%s is empty", name)
		}
	}
	if !strings.Contains(read("usr/share/zsh/vendor-completions/_liveupd"), "#compdef liveupd") {
		t.Error("zsh would not take its completions")
	}

	// The default configuration changes nothing, and each line of it is one that is understood
	// when its mark is taken away; it and the page tell of every setting.
	text := read("etc/liveupd/liveupd.toml")
	var empty map[string]any
	if err := toml.Unmarshal([]byte(text), &empty); err != nil || len(empty) > 0 {
		t.Errorf("the default configuration says %v, %v", empty, err)
	}
	said := regexp.MustCompile(`(?m)^#([a-z\[])`).ReplaceAllString(text, "$1")
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "etc/liveupd"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "etc/liveupd/liveupd.toml"), []byte(said), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := config.Load(dir); err != nil {
		t.Errorf("the default configuration, said: %v", err)
	}
	page := read("usr/share/man/man5/liveupd.toml.5.gz")
	for _, key := range settings(reflect.TypeFor[config.Config]()) {
		if !strings.Contains(page, `\fB`+key+`\fR`) {
			t.Errorf("liveupd.toml(5) does not tell of %s", key)
		}
	}
	for _, table := range []string{"[guard]", "[health]", "[unattended]", "[[unattended.group]]"} {
		if !strings.Contains(page, table) {
			t.Errorf("liveupd.toml(5) does not tell of %s", table)
		}
	}
	for _, key := range []string{"source", "max", "keep", "enabled"} {
		if !regexp.MustCompile(`(?m)^#` + key + ` = `).MatchString(text) {
			t.Errorf("the default configuration does not tell of %s", key)
		}
	}

	// Modes and owners are the package's, whatever the umask was.
	err := filepath.WalkDir(root, func(name string, e fs.DirEntry, err error) error {
		if err != nil || name == root {
			return err
		}
		st, err := e.Info()
		if err != nil {
			return err
		}
		if mode := st.Mode(); mode.IsRegular() && mode.Perm() != 0o644 && mode.Perm() != 0o755 || mode.IsDir() && mode.Perm() != 0o755 {
			t.Errorf("%s has the mode %v", name, mode)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// section is what follows a heading of a help text, up to the next empty line.
func section(text, heading string) string {
	_, rest, _ := strings.Cut(text, heading)
	body, _, _ := strings.Cut(rest, "\n\n")
	return body
}

// settings are the names of all settings.
func settings(of reflect.Type) []string {
	var out []string
	for f := range of.Fields() {
		key := f.Tag.Get("toml")
		if key == "" {
			continue
		}
		typ := f.Type
		if typ.Kind() == reflect.Slice {
			typ = typ.Elem()
		}
		if typ.Kind() == reflect.Struct && typ.NumField() > 0 && typ.Field(0).Tag.Get("toml") != "" {
			out = append(out, settings(typ)...)
			continue
		}
		out = append(out, key)
	}
	return out
}
