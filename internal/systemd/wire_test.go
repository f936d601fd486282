package systemd

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"
)

// What the general library decodes of our calls is what was meant.
func TestAppendCall(t *testing.T) {
	// The message begins anywhere in what is written.
	b := appendCall([]byte("xyz"), 7, service, "/org/x", propsIface, "Get", unitIface, "Id")[3:]
	m, err := dbus.DecodeMessage(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	want := map[dbus.HeaderField]any{
		dbus.FieldPath: dbus.ObjectPath("/org/x"), dbus.FieldInterface: propsIface, dbus.FieldMember: "Get",
		dbus.FieldDestination: service, dbus.FieldSignature: dbus.ParseSignatureMust("ss"),
	}
	for field, value := range want {
		if got := m.Headers[field].Value(); !cmp.Equal(got, value, cmp.Comparer(func(a, b dbus.Signature) bool { return a == b })) {
			t.Errorf("header field %d = %v; want %v", field, got, value)
		}
	}
	if diff := cmp.Diff([]any{unitIface, "Id"}, m.Body); diff != "" || m.Type != dbus.TypeMethodCall || m.Serial() != 7 {
		t.Errorf("type %v, serial %d, body (-want +got):\n%s", m.Type, m.Serial(), diff)
	}
	// Without arguments there is neither a body nor a signature.
	m, err = dbus.DecodeMessage(bytes.NewReader(appendCall(nil, 1, "", "/", "a.b", "C")))
	if err != nil || len(m.Body) != 0 || len(m.Headers) != 3 {
		t.Errorf("a call without arguments: %+v, %v", m, err)
	}
}

func encoded(t testing.TB, order binary.ByteOrder, m *dbus.Message) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := m.EncodeTo(&b, order); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func returned(body ...any) *dbus.Message {
	return &dbus.Message{Type: dbus.TypeMethodReply, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldReplySerial: dbus.MakeVariant(uint32(9)), dbus.FieldSender: dbus.MakeVariant(":1.2"),
		dbus.FieldSignature: dbus.MakeVariant(dbus.SignatureOf(body...)),
	}, Body: body}
}

func TestReadReply(t *testing.T) {
	values := map[any]any{
		"text": "text", true: true, uint32(5): uint64(5), uint64(1) << 40: uint64(1) << 40, int32(6): uint64(6),
		dbus.ObjectPath("/o"): "/o",
	}
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		var buf []byte
		read := func(m *dbus.Message) (r reply) {
			var err error
			if r, buf, err = readReply(bufio.NewReader(bytes.NewReader(encoded(t, order, m))), buf); err != nil {
				t.Fatal(err)
			}
			return r
		}
		for in, want := range values {
			r := read(returned(dbus.MakeVariant(in)))
			if got := r.body.variant(); got != want || r.replyTo != 9 || r.kind != kindReturn || r.failure() != nil || r.body.bad {
				t.Errorf("%v: variant() = %v of %+v", in, got, r)
			}
		}
		r := read(returned(dbus.MakeVariant([]string{"a", "", "c"})))
		if diff := cmp.Diff([]string{"a", "", "c"}, r.body.variant()); diff != "" {
			t.Errorf("a list (-want +got):\n%s", diff)
		}
		r = read(returned(dbus.MakeVariant([]byte{1, 2})))
		if diff := cmp.Diff([]byte{1, 2}, r.body.variant()); diff != "" {
			t.Errorf("bytes (-want +got):\n%s", diff)
		}
		r = read(returned(dbus.MakeVariant(map[string]string{"a": "b"})))
		if got := r.body.variant(); got != nil {
			t.Errorf("a type that no property has = %v", got)
		}
		e := returned("it is not there")
		e.Type = dbus.TypeError
		e.Headers[dbus.FieldErrorName] = dbus.MakeVariant("org.freedesktop.DBus.Error.UnknownObject")
		r = read(e)
		if err := r.failure(); err == nil || err.Error() != "it is not there" || !unknown(err) {
			t.Errorf("failure() = %v", err)
		}
	}
}

func TestReadReplyRefuses(t *testing.T) {
	good := encoded(t, binary.LittleEndian, returned(dbus.MakeVariant("text")))
	change := func(at int, to ...byte) []byte {
		b := bytes.Clone(good)
		copy(b[at:], to)
		return b
	}
	for name, b := range map[string][]byte{
		"no byte order":         change(0, 'x'),
		"a body without end":    change(4, 0xff, 0xff, 0xff, 0xff),
		"fields without end":    change(12, 0xff, 0xff, 0xff, 0x7f),
		"a field of an array":   change(18, 'a'),
		"a text without end":    change(bytes.Index(good, []byte(":1.2"))-4, 0xff, 0xff, 0xff, 0xff),
		"cut off in its fields": good[:40],
		"cut off in its body":   good[:len(good)-1],
	} {
		r, _, err := readReply(bufio.NewReader(bytes.NewReader(b)), nil)
		if err == nil {
			t.Errorf("%s: %+v", name, r)
		}
	}
	r, _, err := readReply(bufio.NewReader(bytes.NewReader(change(len(good)-9, 0xff, 0xff))), nil)
	if r.body.variant(); err != nil || !r.body.bad {
		t.Errorf("a text that is longer than its message is read: %v", err)
	}
}

func FuzzReadReply(f *testing.F) {
	f.Add(encoded(f, binary.LittleEndian, returned(dbus.MakeVariant([]string{"a", "b"}))))
	f.Add(encoded(f, binary.BigEndian, returned(dbus.MakeVariant(uint64(1)))))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, _, err := readReply(bufio.NewReader(bytes.NewReader(b)), nil)
		if err != nil {
			return
		}
		if r.failure() == nil {
			r.body.variant()
		}
		r.body.array(8, func() { r.body.align(8); r.body.skip() })
		if r.body.off > len(r.body.b)+8 && !r.body.bad {
			t.Errorf("read to %d of %d bytes", r.body.off, len(r.body.b))
		}
	})
}

func TestUnknown(t *testing.T) {
	if unknown(nil) || unknown(errors.New("x")) || unknown(&replyError{name: "org.freedesktop.DBus.Error.AccessDenied"}) {
		t.Error("what is refused counts as absent")
	}
}
