package change

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"unicode/utf8"
)

// Names of files are bytes, and JSON has none: each byte that is not UTF-8 would become the same
// U+FFFD, and two names one. So in all JSON that is printed or kept
//
//   - a byte that is no part of UTF-8 is written \xHH, with two small hexadecimal digits, which
//     are 80 or more;
//   - a backslash of the text itself that would be read as such (before xHH of 80 or more, or before
//     x5c) is written \x5c;
//   - all else stands for itself, other backslashes too: dev-disk-by\x2duuid.swap is just that.
//
// So different texts are different, and Unescape gives back the bytes.

// escapes tells whether text after a backslash makes it one of ours.
func escapes(after string) bool {
	if len(after) < 3 || after[0] != 'x' {
		return false
	}
	high, low := after[1], after[2]
	hex := func(c byte) bool { return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' }
	return after[1:3] == "5c" || hex(high) && hex(low) && high >= '8'
}

// Escape gives a text as JSON has it.
func Escape(s string) string {
	if utf8.ValidString(s) && !strings.Contains(s, `\x`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case r == '\\' && escapes(s[i+1:]):
			b.WriteString(`\x5c`)
		default:
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String()
}

// Unescape undoes Escape.
func Unescape(s string) string {
	if !strings.Contains(s, `\x`) {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || !escapes(s[i+1:]) {
			b = append(b, s[i])
			continue
		}
		b = append(b, digit(s[i+2])<<4|digit(s[i+3]))
		i += 3
	}
	return string(b)
}

func digit(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return c - 'a' + 10
}

// Escaped is v with all its texts as JSON has them: v itself where that is all the same, else a
// copy.
func Escaped[T any](v T) T {
	return mapped(v, Escape)
}

// Unescaped undoes Escaped.
func Unescaped[T any](v T) T {
	return mapped(v, Unescape)
}

func mapped[T any](v T, f func(string) string) T {
	if out, changed := mapTexts(reflect.ValueOf(&v).Elem(), f); changed {
		return out.Interface().(T)
	}
	return v
}

// Decode reads JSON whose texts were Escaped.
func Decode(raw []byte, into any) error {
	if err := json.Unmarshal(raw, into); err != nil {
		return err
	}
	in := reflect.ValueOf(into).Elem()
	if out, changed := mapTexts(in, Unescape); changed {
		in.Set(out)
	}
	return nil
}

// mapTexts gives a copy of v in which f was applied to all texts; changed is false, and v is
// given itself, where it changes none. Bytes are no text, nor is what is not exported.
func mapTexts(v reflect.Value, f func(string) string) (_ reflect.Value, changed bool) {
	switch v.Kind() {
	case reflect.String:
		if s, text := v.String(), f(v.String()); text != s {
			out := reflect.New(v.Type()).Elem()
			out.SetString(text)
			return out, true
		}
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			return v, false
		}
		inner, changed := mapTexts(v.Elem(), f)
		if !changed {
			return v, false
		}
		if v.Kind() == reflect.Interface {
			return inner, true
		}
		out := reflect.New(v.Type().Elem())
		out.Elem().Set(inner)
		return out, true
	case reflect.Struct:
		out := v
		for i := range v.NumField() {
			if !v.Type().Field(i).IsExported() {
				continue
			}
			field, mapped := mapTexts(v.Field(i), f)
			if !mapped {
				continue
			}
			if !changed {
				out, changed = reflect.New(v.Type()).Elem(), true
				out.Set(v)
			}
			out.Field(i).Set(field)
		}
		return out, changed
	case reflect.Slice, reflect.Array:
		return mapList(v, f)
	case reflect.Map:
		return mapMap(v, f)
	default: // numbers and flags
	}
	return v, false
}

func mapList(v reflect.Value, f func(string) string) (_ reflect.Value, changed bool) {
	if v.Type().Elem().Kind() == reflect.Uint8 {
		return v, false
	}
	out := v
	for i := range v.Len() {
		item, mapped := mapTexts(v.Index(i), f)
		if !mapped {
			continue
		}
		if !changed {
			changed = true
			if v.Kind() == reflect.Slice {
				out = reflect.MakeSlice(v.Type(), v.Len(), v.Len())
				reflect.Copy(out, v)
			} else {
				out = reflect.New(v.Type()).Elem()
				out.Set(v)
			}
		}
		out.Index(i).Set(item)
	}
	return out, changed
}

func mapMap(v reflect.Value, f func(string) string) (_ reflect.Value, changed bool) {
	out := reflect.MakeMapWithSize(v.Type(), v.Len())
	for it := v.MapRange(); it.Next(); {
		key, mapped := mapTexts(it.Key(), f)
		item, mappedItem := mapTexts(it.Value(), f)
		changed = changed || mapped || mappedItem
		out.SetMapIndex(key, item)
	}
	if !changed {
		return v, false
	}
	return out, true
}
