package change

import (
	"encoding/json"
	"reflect"
	"testing"
)

func TestEscape(t *testing.T) {
	for text, want := range map[string]string{
		"":                            "",
		"/etc/plain":                  "/etc/plain",
		"/etc/ä\ufffd":                "/etc/ä\ufffd",
		"/etc/a\xff":                  `/etc/a\xff`,
		"\x80\xc3":                    `\x80\xc3`,
		`/etc/a\xff`:                  `/etc/a\x5cxff`,
		`/etc/a\x5cxff`:               `/etc/a\x5cx5cxff`,
		`dev-disk-by\x2duuid.swap`:    `dev-disk-by\x2duuid.swap`,
		`a\xFF \xf \x \\ \`:           `a\xFF \xf \x \\ \`,
		"a\\\xffx":                    `a\\xffx`,
		"\\x8\xff":                    `\x8\xff`,
		"two\nlines\xe2\x82 and some": `two` + "\n" + `lines\xe2\x82 and some`,
	} {
		if got := Escape(text); got != want {
			t.Errorf("%q is written %q; want %q", text, got, want)
		}
		if got := Unescape(want); got != text {
			t.Errorf("%q is read as %q; want %q", want, got, text)
		}
	}
}

// Whatever the bytes, other bytes are other text, and the text is valid JSON.
func FuzzEscape(f *testing.F) {
	for _, s := range []string{"/a", "\xff", `\xff`, `\x5cxff`, `\\x5c`, "\\\xff", "\\x\xff\xffff", `\x5`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		raw, err := json.Marshal(Escaped(s))
		if err != nil {
			t.Fatal(err)
		}
		var got string
		if err := Decode(raw, &got); err != nil || got != s {
			t.Errorf("%q became %s, and that %q (%v)", s, raw, got, err)
		}
	})
}

func TestEscapedValues(t *testing.T) {
	bad, good := "/etc/a\xff", `/etc/a\xff`
	plan := &Plan{Paths: []PathChange{{Path: "/x"}, {Path: bad, Op: Add}}, Warnings: []string{bad}, Units: []UnitPlan{{Reasons: []Reason{{Via: []Link{{Path: bad}}}}}}}
	raw, err := json.Marshal(Escaped(plan))
	if err != nil {
		t.Fatal(err)
	}
	if plan.Paths[1].Path != bad || plan.Warnings[0] != bad || plan.Units[0].Reasons[0].Via[0].Path != bad {
		t.Errorf("the plan itself was changed: %+v", plan)
	}
	var plain, back Plan
	if err := json.Unmarshal(raw, &plain); err != nil {
		t.Fatal(err)
	}
	if plain.Paths[1].Path != good || plain.Warnings[0] != good || plain.Units[0].Reasons[0].Via[0].Path != good || plain.Paths[0].Path != "/x" {
		t.Errorf("printed is %+v", plain)
	}
	if err := Decode(raw, &back); err != nil || !reflect.DeepEqual(back.Paths, plan.Paths) || back.Units[0].Reasons[0].Via[0].Path != bad {
		t.Errorf("read again is %+v (%v)", back, err)
	}
	clean := &Plan{Warnings: []string{"one"}}
	if Escaped(clean) != clean {
		t.Error("what has nothing to escape was copied")
	}
	m := Escaped(map[string]any{bad: []any{bad, 1, nil, [1]string{bad}}, "raw": []byte("\xff")})
	if !reflect.DeepEqual(m, map[string]any{good: []any{good, 1, nil, [1]string{good}}, "raw": []byte("\xff")}) {
		t.Errorf("a map became %q", m)
	}
}
