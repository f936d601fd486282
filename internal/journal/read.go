package journal

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strconv"

	"github.com/liveupd/liveupd/change"
)

// maxLine bounds one record, so that a damaged file cannot take all memory. A
// plan with its paths is the longest.
const maxLine = 64 << 20

// Read checks a whole journal of size bytes and gives what leads to its operations,
// which stay in the file: it must stay open as long as they are used. file names it in
// errors. Nothing is returned unless every byte is what was written (ErrCorrupt,
// ErrVersion otherwise).
func Read(r io.ReaderAt, size int64, file string) (*Journal, error) {
	j := &Journal{Ops: Ops{file: r, name: file, used: map[int]bool{}}}
	br := bufio.NewReaderSize(io.NewSectionReader(r, 0, size), 1<<18)
	sum := sha256.New()
	var at int64
	for n := 0; ; n++ {
		line, err := readLine(br, file, n)
		if err != nil {
			return nil, err
		}
		body, ok := checkLine(line)
		if !ok {
			return nil, corrupt(file, n, "the checksum does not match")
		}
		var rec record
		if err := decode(body, &rec); err != nil {
			// Another version's records need not look like ours: its header says so first.
			if n == 0 && foreignVersion(body) {
				return nil, fmt.Errorf("cannot read %s: %w", file, ErrVersion)
			}
			return nil, corrupt(file, n, "%v", err)
		}
		if rec.End != nil {
			if rec.End.Records != n {
				return nil, corrupt(file, n, "it counts %d records, the end says %d", n, rec.End.Records)
			}
			if rec.End.SHA256 != hex.EncodeToString(sum.Sum(nil)) {
				return nil, corrupt(file, n, "the digest over all records does not match")
			}
			if _, err := br.ReadByte(); !errors.Is(err, io.EOF) {
				return nil, corrupt(file, n, "something follows the end")
			}
			if n == 0 {
				return nil, corrupt(file, n, "there is no header")
			}
			return j, nil
		}
		sum.Write(line)
		next := at + int64(len(line))
		if err := j.take(&rec, n, at, next); err != nil {
			if errors.Is(err, ErrVersion) {
				return nil, fmt.Errorf("cannot read %s: %w", file, err)
			}
			return nil, corrupt(file, n, "%v", err)
		}
		at = next
	}
}

// take takes the record n, which lies from at to next.
func (j *Journal) take(rec *record, n int, at, next int64) error {
	switch {
	case (rec.Header != nil) != (n == 0):
		return errors.New("the header is not the first record")
	case rec.Header != nil:
		j.Header = *rec.Header
		if j.Header.Version != Version {
			return fmt.Errorf("%w: %d, this program reads %d", ErrVersion, j.Header.Version, Version)
		}
	case rec.Volume != nil:
		if j.Ops.Len() > 0 {
			return errors.New("a volume after the first operation")
		}
		j.Volumes = append(j.Volumes, *rec.Volume)
		j.Ops.volumes = len(j.Volumes)
	case rec.Op != nil:
		op, err := rec.Op.op(len(j.Volumes))
		if err != nil {
			return err
		}
		o := &j.Ops
		if o.Len() == 0 {
			o.first, o.at = n, []int64{at}
		} else if o.at[len(o.at)-1] != at {
			return errors.New("an operation after the plan")
		}
		o.used[op.Volume] = true
		o.at, o.marks = append(o.at, next), append(o.marks, mark(&op))
	case rec.Plan != nil:
		j.plan = planLine{n, at, next - at}
	default:
		return errors.New("an empty record")
	}
	return nil
}

// Plan reads the plan that the transaction was made for; nil where it has none.
func (j *Journal) Plan() (*change.Plan, error) {
	if j.plan.size == 0 {
		return j.Made, nil
	}
	line := make([]byte, j.plan.size)
	if _, err := j.Ops.file.ReadAt(line, j.plan.at); err != nil {
		return nil, fmt.Errorf("cannot read %s: record %d: %w", j.Ops.name, j.plan.record, err)
	}
	var rec record
	body, ok := checkLine(line)
	if !ok || decode(body, &rec) != nil || rec.Plan == nil {
		return nil, corrupt(j.Ops.name, j.plan.record, "it changed since the journal was opened")
	}
	return change.Unescaped(rec.Plan), nil
}

// ReadHeader reads the first record alone: for a list of generations.
func ReadHeader(r io.Reader, file string) (Header, error) {
	line, err := readLine(bufio.NewReader(r), file, 0)
	if err != nil {
		return Header{}, err
	}
	body, ok := checkLine(line)
	if !ok {
		return Header{}, corrupt(file, 0, "the checksum does not match")
	}
	var rec record
	if err := json.Unmarshal(body, &rec); err != nil || rec.Header == nil {
		return Header{}, corrupt(file, 0, "there is no header")
	}
	if rec.Header.Version != Version {
		return Header{}, fmt.Errorf("cannot read %s: %w: %d, this program reads %d", file, ErrVersion, rec.Header.Version, Version)
	}
	return *rec.Header, nil
}

func readLine(br *bufio.Reader, file string, n int) ([]byte, error) {
	var line []byte
	for {
		part, err := br.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case err == nil:
			return line, nil
		case errors.Is(err, io.EOF):
			return nil, corrupt(file, n, "the file ends before the end record")
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, fmt.Errorf("cannot read %s: %w", file, err)
		case len(line) > maxLine:
			return nil, corrupt(file, n, "the record is longer than %d bytes", maxLine)
		}
	}
}

func checkLine(line []byte) (body []byte, ok bool) {
	if len(line) < 10 || line[8] != ' ' || line[len(line)-1] != '\n' {
		return nil, false
	}
	want, err := strconv.ParseUint(string(line[:8]), 16, 32)
	if err != nil {
		return nil, false
	}
	body = line[9 : len(line)-1]
	return body, crc32.Checksum(body, castagnoli) == uint32(want)
}

// opPrefix begins the body of an operation.
var opPrefix = []byte(`{"op":`)

// decode refuses fields of an operation that this version does not know: to act
// on half of what it says is worse than not to act. A plan or a header with a
// field more than this program knows must not keep an older one, in an initrd,
// from recovering.
func decode(body []byte, rec *record) error {
	d := json.NewDecoder(bytes.NewReader(body))
	if bytes.HasPrefix(body, opPrefix) {
		d.DisallowUnknownFields()
	}
	return d.Decode(rec)
}

func foreignVersion(body []byte) bool {
	var probe struct {
		Header struct {
			Version int `json:"version"`
		} `json:"header"`
	}
	return json.Unmarshal(body, &probe) == nil && probe.Header.Version != 0 && probe.Header.Version != Version
}
