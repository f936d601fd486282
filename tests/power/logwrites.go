package power

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/liveupd/liveupd/tests/power/tree"
)

const sector = 512

// The flags of an entry, as drivers/md/dm-log-writes.c of the kernel gives them.
const (
	flagFlush   = 1
	flagFUA     = 2
	flagDiscard = 4
)

// write is an entry of the log: what the guest asked its disk for, in the order in which it asked.
type write struct {
	at    int64 // byte of the disk
	size  int64 // bytes
	flags uint64
	data  int64  // where the content lies in the log
	mark  string // what the guest noted here, see tree.MarkMagic
}

// barrier tells whether the disk held all that came before when it said that this was done. A write with FUA
// is durable by itself; what came before it need not be.
func (w write) barrier() bool { return w.flags&flagFlush != 0 }

// writeLog is the log of a disk's writes, in the format of dm-log-writes: a sector with magic, version, number of
// entries (64 bits each) and the size of a sector (32); then for each entry a sector with its sector, its number of sectors,
// its flags and the length of its own data (64 bits each), and its content. All little-endian.
type writeLog struct {
	file   *os.File
	writes []write
}

func (l *writeLog) Close() error { return l.file.Close() }

// readLog reads the log of a machine that may have been killed: qemu counts the entries at each
// flush only, so what follows is read until an entry is empty or not whole.
func readLog(name string) (*writeLog, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	l := &writeLog{file: f}
	if err := l.read(); err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot read the log %s: %w", name, err)
	}
	return l, nil
}

func (l *writeLog) read() error {
	const magic = 0x6a736677736872
	head := make([]byte, sector)
	if _, err := l.file.ReadAt(head, 0); err != nil {
		return err
	}
	word := func(i int) uint64 { return binary.LittleEndian.Uint64(head[8*i:]) }
	if word(0) != magic || word(1) != 1 {
		return fmt.Errorf("magic %x, version %d", word(0), word(1))
	}
	counted := word(2)
	info, err := l.file.Stat()
	if err != nil {
		return err
	}
	for at := int64(sector); ; {
		_, err := l.file.ReadAt(head, at)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		w := write{at: int64(word(0)) * sector, size: int64(word(1)) * sector, flags: word(2), data: at + sector}
		if w.size == 0 && w.flags == 0 {
			break
		}
		at += sector
		if w.flags&flagDiscard == 0 {
			at += w.size
		}
		if at > info.Size() {
			break
		}
		if w.size == tree.MarkSize && w.flags == 0 {
			text := make([]byte, tree.MarkSize)
			if _, err := l.file.ReadAt(text, w.data); err != nil {
				return err
			}
			if mark, ok := strings.CutPrefix(string(bytes.TrimRight(text, "\x00")), tree.MarkMagic); ok {
				w.mark = mark
			}
		}
		l.writes = append(l.writes, w)
	}
	if n := uint64(len(l.writes)); n < counted {
		return fmt.Errorf("it counts %d entries and holds %d", counted, n)
	}
	return nil
}

// index is where the first mark with this text lies, len(l.writes) where there is none.
func (l *writeLog) index(mark string) int {
	if i := slices.IndexFunc(l.writes, func(w write) bool { return w.mark == mark }); i >= 0 {
		return i
	}
	return len(l.writes)
}

// barriers are the indexes of the flushes.
func (l *writeLog) barriers() []int {
	var out []int
	for i, w := range l.writes {
		if w.barrier() {
			out = append(out, i)
		}
	}
	return out
}

// replay does a write to an image: all of it, or where part is not nil of each 4 KiB of it what part says. No disk tears
// what it calls a physical block, which is 4 KiB for most; file systems count on that.
func (l *writeLog) replay(image *os.File, w write, part func() bool) error {
	const block = 4096
	if w.size == 0 || w.mark != "" {
		return nil
	}
	if w.flags&flagDiscard != 0 {
		if part != nil && !part() {
			return nil
		}
		const punch = 2 | 1 // FALLOC_FL_PUNCH_HOLE, FALLOC_FL_KEEP_SIZE
		return syscall.Fallocate(int(image.Fd()), punch, w.at, w.size)
	}
	content := make([]byte, w.size)
	if _, err := l.file.ReadAt(content, w.data); err != nil {
		return err
	}
	for from := int64(0); from < w.size; {
		to := min(from+block-(w.at+from)%block, w.size)
		if part == nil {
			to = w.size
		}
		if part == nil || part() {
			if _, err := image.WriteAt(content[from:to], w.at+from); err != nil {
				return err
			}
		}
		from = to
	}
	return nil
}

// lossy replays a write as a disk that loses power may have done it: whole, in part, or not at all. A write with FUA
// that was answered is durable; whether it was nobody has noted, so that it counts as any other.
func (l *writeLog) lossy(image *os.File, w write, random *rand.Rand) error {
	switch random.IntN(8) {
	case 0, 1, 2:
		return nil
	case 3:
		return l.replay(image, w, func() bool { return random.IntN(2) == 0 })
	}
	return l.replay(image, w, nil)
}
