package tree

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/trust"
)

const sum = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"

const head = "liveupd-manifest 1\nname app\nversion 1.0\nsequence 3\nbootme false\nexpires 1800000000\nsigned 1700000000\nrevokes 0000000000000001,0123456789ABCDEF\n"

const top = "liveupd-manifest 1\nname app\nversion 1.0\nsequence 3\nbootme false\ntoml -\n"

func TestParseManifest(t *testing.T) {
	text := top +
		"d 0755 0 0 0 - - /usr\n" +
		"f 4755 0 0 5 " + sum + " security.capability=AQAAAg== /usr/a\n" +
		"d 0755 0 0 0 - - /usr/a-b\n" +
		`l 0777 1 2 0 ..\x20/x - /usr/a-b/\xff` + "\n" +
		"c 0666 0 0 0 259 - /usr/null\n" +
		"p 0600 0 0 0 - - /usr/pipe\n" +
		"s 0600 0 0 0 - - /usr/socket\n"
	d, err := parseManifest([]byte(text))
	must(t, err)
	if diff := cmp.Diff(header{Head: trust.Head{Name: "app", Version: "1.0", Sequence: 3}}, d.header); diff != "" {
		t.Errorf("header (-want +got):\n%s", diff)
	}
	i, ok := d.find("/usr/a-b/\xff")
	if !ok {
		t.Fatal("find does not find a listed path")
	}
	_, n, err := parseLine(string(d.line(d.lines[i])))
	must(t, err)
	if diff := cmp.Diff(&change.Node{Type: change.Symlink, Mode: 0o777, UID: 1, GID: 2, Target: ".. /x"}, n); diff != "" {
		t.Errorf("node (-want +got):\n%s", diff)
	}
	if _, ok := d.find("/usr/b"); ok {
		t.Error("find finds a path that is not listed")
	}
}

func TestParseHead(t *testing.T) {
	d, err := parseManifest([]byte(head + "toml -\n"))
	must(t, err)
	want := header{Head: trust.Head{
		Name: "app", Version: "1.0", Sequence: 3, Expires: 1800000000, Signed: 1700000000, Revokes: []trust.KeyID{1, 0x0123456789ABCDEF},
	}}
	if diff := cmp.Diff(want, d.header); diff != "" {
		t.Errorf("header (-want +got):\n%s", diff)
	}
	if got := string(d.header.append(nil)); got != head+"toml -\n" {
		t.Errorf("written again: %q", got)
	}
}

func TestParseManifestRefuses(t *testing.T) {
	usr := top + "d 0755 0 0 0 - - /usr\n"
	tests := []struct{ name, text, want string }{
		{"nothing", "", "line 1"},
		{"other format", "liveupd-manifest 2\n", "line 1"},
		{"cut in the head", "liveupd-manifest 1\nname app\n", "line 3"},
		{"cut in a line", usr + "d 0755 0 0 0 - - /usr/a", "not ended by a newline"},
		{"order of keys", "liveupd-manifest 1\nversion 1\n", "want the key name"},
		{"sequence", strings.Replace(usr, "sequence 3", "sequence 03", 1), "line 4"},
		{"sequence too big", strings.Replace(usr, "sequence 3", "sequence 18446744073709551616", 1), "line 4"},
		{"bootme", strings.Replace(usr, "bootme false", "bootme no", 1), "line 5"},
		{"expires zero", strings.Replace(usr, "toml", "expires 0\ntoml", 1), "line 6"},
		{"expires after signed", strings.Replace(usr, "toml", "signed 1\nexpires 2\ntoml", 1), "want the key toml"},
		{"expires twice", strings.Replace(usr, "toml", "expires 2\nexpires 2\ntoml", 1), "want the key toml"},
		{"expires before it is signed", strings.Replace(usr, "toml", "expires 1\nsigned 2\ntoml", 1), "expires before that"},
		{"expires beyond the calendar", strings.Replace(usr, "toml", "expires 253402300800\ntoml", 1), "between 1970 and 9999"},
		{"revokes nothing", strings.Replace(usr, "toml", "revokes \ntoml", 1), "key ID"},
		{"revokes short", strings.Replace(usr, "toml", "revokes 1\ntoml", 1), "16 digits"},
		{"revokes small letters", strings.Replace(usr, "toml", "revokes 0123456789abcdef\ntoml", 1), "capitals"},
		{"revokes out of order", strings.Replace(usr, "toml", "revokes 0000000000000002,0000000000000001\ntoml", 1), "does not come after"},
		{"toml", strings.Replace(usr, "toml -", "toml abc", 1), "line 6"},
		{"empty name unescaped", strings.Replace(usr, "name app", "name ", 1), "line 2"},
		{"fields", usr + "d 0755 0 0 0 - /usr/a\n", "7 fields"},
		{"type", usr + "x 0755 0 0 0 - - /usr/a\n", "unknown type"},
		{"type 0", usr + "? 0755 0 0 0 - - /usr/a\n", "unknown type"},
		{"mode", usr + "d 0855 0 0 0 - - /usr/a\n", "octal"},
		{"mode too big", usr + "d 10755 0 0 0 - - /usr/a\n", "octal"},
		{"mode not four digits", usr + "d 755 0 0 0 - - /usr/a\n", "canonical"},
		{"uid", usr + "d 0755 4294967296 0 0 - - /usr/a\n", "decimal"},
		{"negative size", usr + "f 0755 0 0 -1 " + sum + " - /usr/a\n", "decimal"},
		{"size of a directory", usr + "d 0755 0 0 1 - - /usr/a\n", "has a size"},
		{"data of a directory", usr + "d 0755 0 0 0 x - /usr/a\n", "canonical"},
		{"digest", usr + "f 0755 0 0 1 abc - /usr/a\n", "SHA-256"},
		{"digest in capitals", usr + "f 0755 0 0 1 " + strings.ToUpper(sum) + " - /usr/a\n", "SHA-256"},
		{"zero digest", usr + "f 0755 0 0 1 " + strings.Repeat("0", 64) + " - /usr/a\n", "no digest"},
		{"empty target", usr + `l 0777 0 0 0 \e - /usr/a` + "\n", "no symlink can have"},
		{"relative path", top + "d 0755 0 0 0 - - usr\n", "absolute, clean"},
		{"root", top + "d 0755 0 0 0 - - /\n", "absolute, clean"},
		{"dots", usr + "d 0755 0 0 0 - - /usr/../etc\n", "absolute, clean"},
		{"NUL", usr + `d 0755 0 0 0 - - /usr/a\x00b` + "\n", "absolute, clean"},
		{"store", usr + "d 0755 0 0 0 - - /.liveupd\n", "liveupd's own"},
		{"store below", usr + "d 0755 0 0 0 - - /usr/.liveupd\n", "liveupd's own"},
		{"itself", top + "f 0644 0 0 5 " + sum + " - /liveupd.toml\n", "describes the tree"},
		{"no parent", top + "d 0755 0 0 0 - - /usr/a\n", "no listed directory"},
		{"below a symlink", top + "l 0777 0 0 0 usr/lib - /lib\nd 0755 0 0 0 - - /lib/a\n", "no listed directory"},
		{"twice", usr + "d 0755 0 0 0 - - /usr\n", "does not come after"},
		{"order", usr + "d 0755 0 0 0 - - /etc\n", "does not come after"},
		{"needless escape", usr + `d 0755 0 0 0 - - /usr/\x61` + "\n", "one way"},
		{"escape in capitals", usr + `d 0755 0 0 0 - - /usr/\xFF` + "\n", "one way"},
		{"cut escape", usr + `d 0755 0 0 0 - - /usr/\xf` + "\n", "incomplete escape"},
		{"raw bytes", usr + "d 0755 0 0 0 - - /usr/\xff\n", "one way"},
		{"attributes out of order", usr + "d 0755 0 0 0 - user.b=,user.a= /usr/a\n", "canonical"},
		{"attribute twice", usr + "d 0755 0 0 0 - user.a=,user.a= /usr/a\n", "canonical"},
		{"attribute without value", usr + "d 0755 0 0 0 - user.a /usr/a\n", "no value"},
		{"attribute of the machine", usr + "d 0755 0 0 0 - security.selinux=AA== /usr/a\n", "cannot be listed"},
		{"attribute not base64", usr + "d 0755 0 0 0 - user.a=! /usr/a\n", "cannot decode"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parseManifest([]byte(tt.text))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("parseManifest = %v; want an error with %q", err, tt.want)
			}
		})
	}
}

func TestWriteManifestDeterministic(t *testing.T) {
	var first []byte
	for i := range 2 {
		dir := t.TempDir()
		put(t, dir, signedFiles)
		var buf bytes.Buffer
		must(t, WriteManifest(t.Context(), dir, &buf))
		if i == 0 {
			first = buf.Bytes()
		} else if diff := cmp.Diff(string(first), buf.String()); diff != "" {
			t.Errorf("two manifests of the same tree (-first +second):\n%s", diff)
		}
	}
	d, err := parseManifest(first)
	must(t, err)
	if d.header.TOML.IsZero() || len(d.lines) != 11 {
		t.Errorf("%d paths, digest of liveupd.toml %v; want 11 and one", len(d.lines), d.header.TOML)
	}
}

func TestWriteManifestRefuses(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, map[string]string{"var/.liveupd/x": "x"})
	if err := WriteManifest(t.Context(), dir, &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), "liveupd's own") {
		t.Errorf("WriteManifest of a tree with a store = %v; want a refusal", err)
	}
}

func TestEscape(t *testing.T) {
	for _, s := range []string{"", "-", "--", "a b", "\\", "\\e", "\x00\xff", "é", "a=b,c", "\n"} {
		e := escape(s)
		if strings.ContainsAny(e, " \n,=") || e == "-" {
			t.Errorf("escape(%q) = %q is no word", s, e)
		}
		if got, err := unescape(e); err != nil || got != s {
			t.Errorf("unescape(%q) = %q, %v; want %q", e, got, err, s)
		}
	}
}

// What is accepted is the one text of its tree: writing it again gives the same bytes.
func FuzzParseManifest(f *testing.F) {
	dir := f.TempDir()
	for name, content := range map[string]string{"a": "x", "b c": "y"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			f.Fatal(err)
		}
	}
	var buf bytes.Buffer
	if err := WriteManifest(f.Context(), dir, &buf); err != nil {
		f.Fatal(err)
	}
	f.Add(buf.Bytes())
	f.Add([]byte(top))
	f.Add([]byte(head + "toml -\n"))
	f.Add([]byte(top + "d 0755 0 0 0 - - /usr\nl 0777 0 0 0 \\x20 user.a=,user.b=AA== /usr/\\xff\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		d, err := parseManifest(text)
		if err != nil {
			return
		}
		again := d.header.append(nil)
		for i, off := range d.lines {
			p, n, err := parseLine(string(d.line(off)))
			if err != nil {
				t.Fatalf("line %d was accepted and cannot be read again: %v", i, err)
			}
			if at, ok := d.find(p); !ok || at != i {
				t.Fatalf("find(%q) = %d, %v; want %d", p, at, ok, i)
			}
			again = appendLine(again, p, n)
		}
		if !bytes.Equal(again, text) {
			t.Fatalf("accepted %q, writes %q", text, again)
		}
	})
}

func FuzzParseTOML(f *testing.F) {
	f.Add([]byte("name = 'x'\nsequence = 1\nowns = ['/usr']\n"))
	f.Add([]byte("expires = 2027-01-31T00:00:00Z\nrevokes = ['1', '0123456789ABCDEF']\n"))
	f.Add([]byte("expires = '1800000000'\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseTOML(b)
		if err != nil {
			return
		}
		for _, p := range append(m.Owns, m.Never...) {
			if !strings.HasPrefix(p, "/") || p == "/" || filepath.Clean(p) != p {
				t.Fatalf("accepted the path %q", p)
			}
		}
	})
}
