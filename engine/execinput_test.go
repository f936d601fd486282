package engine

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"
)

type closer struct{ io.Reader }

func (closer) Close() error { return nil }

// What was sent arrives whole; cut anywhere it is an error and never a shorter input.
func TestInputWholeOrNot(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, size := range []int{0, 1, 100, 64 << 10, 200001} {
		content := make([]byte, size)
		for i := range content {
			content[i] = byte(r.Uint32())
		}
		var sent bytes.Buffer
		if err := sendInput(&sent, iotest.HalfReader(bytes.NewReader(content))); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(&inputReader{conn: closer{bytes.NewReader(sent.Bytes())}})
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("%d bytes: %d came, %v", size, len(got), err)
		}
		for _, at := range []int{0, 1, 4, 5, sent.Len() / 2, sent.Len() - 4, sent.Len() - 1} {
			if at < 0 || at >= sent.Len() {
				continue
			}
			_, err := io.ReadAll(&inputReader{conn: closer{bytes.NewReader(sent.Bytes()[:at])}})
			if !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%d bytes, cut at %d of %d: %v", size, at, sent.Len(), err)
			}
		}
	}
	failing := iotest.ErrReader(errors.New("broken"))
	var sent bytes.Buffer
	if err := sendInput(&sent, failing); err == nil {
		t.Error("an input that fails is sent whole")
	}
}
