package journal

import (
	"bytes"
	"fmt"
	"io"
	"iter"
	"slices"

	"github.com/liveupd/liveupd/change"
)

// Ops are a journal's operations, in the order of the commit: those of a transaction
// that is being made lie in memory; those of a file are read from it one at a time,
// so that recovering a hundred thousand takes no more memory than recovering ten.
type Ops struct {
	list  []Op
	file  io.ReaderAt
	name  string // in errors
	first int    // the record of the first operation
	at    []int64
	marks []Mark
	// volumes bounds what an operation may name; used are those that some name.
	volumes int
	used    map[int]bool
}

// InMemory makes Ops of a list.
func InMemory(list []Op) Ops {
	o := Ops{list: list, marks: make([]Mark, len(list)), used: map[int]bool{}}
	for i := range list {
		o.marks[i] = mark(&list[i])
		o.used[list[i].Volume] = true
	}
	return o
}

// Mark is what can be known of an operation without reading it.
type Mark uint16

// The marks.
const (
	// Moves: it has a name of its own that moves; Member has none.
	Moves Mark = 1 << iota
	// Below: it is a Member.
	Below
	// InPlace: Metadata and DirTimes.
	InPlace
	// OldDir, NewDir: the object on that side is a directory.
	OldDir
	NewDir
	// OldLinked: the old object is a file with more than one name.
	OldLinked
	// HasOld, HasNew: there is an object on that side.
	HasOld
	HasNew
	// Exchanges: it is an Exchange.
	Exchanges
)

func mark(op *Op) Mark {
	var m Mark
	set := func(when bool, bit Mark) {
		if when {
			m |= bit
		}
	}
	set(op.Kind == Member, Below)
	set(op.Kind != Member && op.Staged != "", Moves)
	set(op.Kind == Metadata || op.Kind == DirTimes, InPlace)
	set(op.Kind == Exchange, Exchanges)
	set(op.Old != nil, HasOld)
	set(op.New != nil, HasNew)
	set(op.Old != nil && op.Old.Type == change.Directory, OldDir)
	set(op.New != nil && op.New.Type == change.Directory, NewDir)
	set(op.Old != nil && op.Old.Type == change.Regular && op.Old.Nlink > 1, OldLinked)
	return m
}

// Any tells whether one of the bits is set.
func (m Mark) Any(bits Mark) bool { return m&bits != 0 }

// Len is how many there are.
func (o *Ops) Len() int { return len(o.marks) }

// Uses tells whether an operation is on the volume.
func (o *Ops) Uses(volume int) bool { return o.used[volume] }

// Mark gives the marks of one.
func (o *Ops) Mark(i int) Mark { return o.marks[i] }

// At gives one; ErrCorrupt where the file is no longer what it was when it was opened.
func (o *Ops) At(i int) (*Op, error) {
	if o.file == nil {
		return &o.list[i], nil
	}
	line := make([]byte, o.at[i+1]-o.at[i])
	if _, err := o.file.ReadAt(line, o.at[i]); err != nil {
		return nil, fmt.Errorf("cannot read %s: record %d: %w", o.name, o.first+i, err)
	}
	body, ok := checkLine(line)
	if !ok || !bytes.HasPrefix(body, opPrefix) {
		return nil, corrupt(o.name, o.first+i, "it changed since the journal was opened")
	}
	var rec record
	err := decode(body, &rec)
	if err == nil && rec.Op != nil {
		var op Op
		if op, err = rec.Op.op(o.volumes); err == nil {
			return &op, nil
		}
	}
	return nil, corrupt(o.name, o.first+i, "%v", err)
}

// Where gives those with one of the marks, in the order of the commit. After an
// error it gives no more.
func (o *Ops) Where(marks Mark) iter.Seq2[*Op, error] {
	return func(yield func(*Op, error) bool) {
		for i := range o.marks {
			if !o.give(i, marks, yield) {
				return
			}
		}
	}
}

// Backward is Where in the reverse order.
func (o *Ops) Backward(marks Mark) iter.Seq2[*Op, error] {
	return func(yield func(*Op, error) bool) {
		for i := range slices.Backward(o.marks) {
			if !o.give(i, marks, yield) {
				return
			}
		}
	}
}

func (o *Ops) give(i int, marks Mark, yield func(*Op, error) bool) bool {
	if !o.marks[i].Any(marks) {
		return true
	}
	op, err := o.At(i)
	return yield(op, err) && err == nil
}
