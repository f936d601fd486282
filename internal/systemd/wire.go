package systemd

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// The few forms of D-Bus messages that questions about units need (D-Bus
// specification, "Message Protocol"): calls with strings as arguments, and
// replies of a variant or of ListUnits. A general decoder takes longer for a
// reply than PID 1 takes to make it.

// maxMessage is the protocol's own limit, in bytes.
const maxMessage = 128 << 20

// kinds of messages.
const (
	kindCall   = 1
	kindReturn = 2
	kindError  = 3
)

// codes of header fields.
const (
	fieldPath        = 1
	fieldInterface   = 2
	fieldMember      = 3
	fieldErrorName   = 4
	fieldReplySerial = 5
	fieldDestination = 6
	fieldSignature   = 8
)

var errMalformed = errors.New("malformed D-Bus message")

// reply is a message that came in.
type reply struct {
	kind      byte
	replyTo   uint32
	errorName string
	body      cursor
}

// failure is the error that a reply tells, nil for a return.
func (r *reply) failure() error {
	if r.kind != kindError {
		return nil
	}
	return &replyError{name: r.errorName, text: r.body.str()}
}

// replyError is an error that the manager answered with.
type replyError struct{ name, text string }

func (e *replyError) Error() string {
	if e.text == "" {
		return e.name
	}
	return e.text
}

// appendCall adds a method call. A destination is for a bus only.
func appendCall(b []byte, serial uint32, destination, path, iface, member string, args ...string) []byte {
	base := len(b)
	pad := func(n int) {
		for (len(b)-base)%n != 0 {
			b = append(b, 0)
		}
	}
	str := func(s string) {
		pad(4)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(s)))
		b = append(append(b, s...), 0)
	}
	const noAutoStart = 2
	b = append(b, 'l', kindCall, noAutoStart, 1)
	b = append(b, 0, 0, 0, 0) // the body's length
	b = binary.LittleEndian.AppendUint32(b, serial)
	b = append(b, 0, 0, 0, 0) // the fields' length
	begin := len(b)
	field := func(code byte, kind byte, s string) {
		if s == "" {
			return
		}
		pad(8)
		b = append(b, code, 1, kind, 0)
		if kind == 'g' {
			b = append(append(append(b, byte(len(s))), s...), 0)
			return
		}
		str(s)
	}
	field(fieldPath, 'o', path)
	field(fieldInterface, 's', iface)
	field(fieldMember, 's', member)
	field(fieldDestination, 's', destination)
	field(fieldSignature, 'g', "ssss"[:len(args)])
	binary.LittleEndian.PutUint32(b[begin-4:], uint32(len(b)-begin))
	pad(8)
	body := len(b)
	for _, a := range args {
		// Its alignment is counted from the body's begin, which is aligned to 8.
		str(a)
	}
	binary.LittleEndian.PutUint32(b[base+4:], uint32(len(b)-body))
	return b
}

// readReply reads one message. It is good until the next is read into buf.
func readReply(r *bufio.Reader, buf []byte) (reply, []byte, error) {
	var head [16]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return reply{}, buf, err
	}
	var order binary.ByteOrder = binary.LittleEndian
	switch head[0] {
	case 'l':
	case 'B':
		order = binary.BigEndian
	default:
		return reply{}, buf, fmt.Errorf("%w: byte order %q", errMalformed, head[0])
	}
	body, fields := uint64(order.Uint32(head[4:])), uint64(order.Uint32(head[12:]))
	size := (fields+7)&^7 + body
	if size > maxMessage {
		return reply{}, buf, fmt.Errorf("%w: %d bytes", errMalformed, size)
	}
	if uint64(cap(buf)) < size {
		buf = make([]byte, size)
	}
	buf = buf[:size]
	if _, err := io.ReadFull(r, buf); err != nil {
		return reply{}, buf, err
	}
	m := reply{kind: head[1], body: cursor{b: buf[size-body:], order: order}}
	c := cursor{b: buf[:fields], order: order}
	for c.off < len(c.b) && !c.bad {
		c.align(8)
		code := c.byte()
		switch c.signature() {
		case "s", "o":
			if s := c.str(); code == fieldErrorName {
				m.errorName = s
			}
		case "u":
			if n := c.u32(); code == fieldReplySerial {
				m.replyTo = n
			}
		case "g":
			c.signature()
		default:
			c.bad = true
		}
	}
	if c.bad {
		return m, buf, errMalformed
	}
	return m, buf, nil
}

// cursor reads values one after the other. What runs over the end sets bad and
// gives nothing.
type cursor struct {
	b     []byte
	off   int
	order binary.ByteOrder
	bad   bool
}

func (c *cursor) align(n int) { c.off = (c.off + n - 1) / n * n }

func (c *cursor) take(n int) []byte {
	if c.bad || n < 0 || c.off > len(c.b) || n > len(c.b)-c.off {
		c.bad = true
		return nil
	}
	c.off += n
	return c.b[c.off-n : c.off]
}

func (c *cursor) byte() byte {
	if b := c.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (c *cursor) u32() uint32 {
	c.align(4)
	if b := c.take(4); b != nil {
		return c.order.Uint32(b)
	}
	return 0
}

func (c *cursor) u64() uint64 {
	c.align(8)
	if b := c.take(8); b != nil {
		return c.order.Uint64(b)
	}
	return 0
}

// text takes n bytes and the zero behind them.
func (c *cursor) text(n uint32) string {
	if uint64(n) > uint64(len(c.b)) {
		c.bad = true
		return ""
	}
	b := c.take(int(n) + 1)
	if b == nil {
		return ""
	}
	return string(b[:n])
}

func (c *cursor) str() string       { return c.text(c.u32()) }
func (c *cursor) signature() string { return c.text(uint32(c.byte())) }

// skip passes over a string.
func (c *cursor) skip() {
	if n := c.u32(); uint64(n) < uint64(len(c.b)) {
		c.take(int(n) + 1)
		return
	}
	c.bad = true
}

// array calls each until the array's bytes are used up; align is its elements'.
func (c *cursor) array(align int, each func()) {
	n := c.u32()
	c.align(align)
	if c.bad || c.off > len(c.b) || uint64(n) > uint64(len(c.b)-c.off) {
		c.bad = true
		return
	}
	for end := c.off + int(n); c.off < end && !c.bad; {
		each()
	}
}

// variant reads a value of the types that properties of units have: text, a
// number, a truth, bytes, a list of texts. Of any other it gives nil.
func (c *cursor) variant() any {
	switch c.signature() {
	case "s", "o":
		return c.str()
	case "b":
		return c.u32() != 0
	case "u":
		return uint64(c.u32())
	case "i":
		return uint64(c.u32())
	case "t":
		return c.u64()
	case "as":
		var out []string
		c.array(4, func() { out = append(out, c.str()) })
		return out
	case "ay":
		n := c.u32()
		if b := c.take(int(min(n, maxMessage))); b != nil {
			return slices.Clone(b)
		}
	}
	return nil
}
