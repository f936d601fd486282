package journal

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"hash/crc32"
	"io"

	"github.com/liveupd/liveupd/change"
)

// Writer streams a journal: memory does not grow with the number of records.
type Writer struct {
	w   *bufio.Writer
	sum hash.Hash
	n   int
}

// NewWriter writes the header.
func NewWriter(w io.Writer, h Header) (*Writer, error) {
	h.Version = Version
	jw := &Writer{sum: sha256.New()}
	jw.w = bufio.NewWriterSize(w, 1<<18)
	return jw, jw.put(&record{Header: &h})
}

// Volume adds a volume; all of them come before the first operation.
func (w *Writer) Volume(v Volume) error { return w.put(&record{Volume: &v}) }

// Op adds an operation; they come in the order of the commit.
func (w *Writer) Op(op *Op) error {
	return w.put(&record{Op: &opRecord{
		Kind: op.Kind, Class: op.Class, Volume: op.Volume, Path: Name(op.Path), Staged: Name(op.Staged),
		Old: toRecord(op.Old), New: toRecord(op.New),
	}})
}

// Plan adds the plan.
func (w *Writer) Plan(p *change.Plan) error { return w.put(&record{Plan: change.Escaped(p)}) }

// Close writes the end record and flushes. It does not sync.
func (w *Writer) Close() error {
	end := &endRecord{Records: w.n, SHA256: hex.EncodeToString(w.sum.Sum(nil))}
	if err := w.put(&record{End: end}); err != nil {
		return err
	}
	return w.w.Flush()
}

func (w *Writer) put(r *record) error {
	line, err := encodeLine(r)
	if err != nil {
		return err
	}
	w.n++
	w.sum.Write(line)
	_, err = w.w.Write(line)
	return err
}

// encodeLine is "CRC JSON\n".
func encodeLine(v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("cannot encode a record: %w", err)
	}
	line := make([]byte, 0, len(body)+10)
	line = fmt.Appendf(line, "%08x ", crc32.Checksum(body, castagnoli))
	line = append(line, body...)
	return append(line, '\n'), nil
}
