package catalog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"

	"github.com/liveupd/liveupd/internal/sys"
)

// headLen is the magic and the checksum, common to both files.
const headLen = 12

// maxFile bounds what is read into memory; a million paths take a tenth of it.
const maxFile = 1 << 30

// readFile reads a whole file below dir; fs.ErrNotExist where it is absent.
func readFile(dir *sys.FD, name string) ([]byte, error) {
	f, err := sys.OpenRegular(dir, name, sys.ResolveBeneath|sys.ResolveNoSymlinks)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if f.Size() > maxFile {
		return nil, fmt.Errorf("%d bytes are too many", f.Size())
	}
	b := make([]byte, f.Size())
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return b[:n], nil
}

// seal writes the checksum into a file's head.
func seal(b []byte) {
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b[headLen:], castagnoli))
}

// unseal checks magic and checksum.
func unseal(b []byte, magic string) error {
	switch {
	case len(b) < headLen || string(b[:8]) != magic:
		return errors.New("not of this format and version")
	case crc32.Checksum(b[headLen:], castagnoli) != binary.LittleEndian.Uint32(b[8:]):
		return errors.New("checksum does not match")
	}
	return nil
}

// writeFile replaces name below dir by b, durably and at once. Where name
// holds b already nothing is written.
func writeFile(k *sys.Kernel, dir *sys.FD, name string, b []byte) error {
	if node, err := sys.Lstat(dir, name); err == nil && node.Size == int64(len(b)) {
		if old, err := readFile(dir, name); err == nil && bytes.Equal(old, b) {
			return nil
		}
	}
	temp := name + ".new"
	if err := k.Unlink(dir, temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot remove an unfinished %s: %w", temp, err)
	}
	if err := writeNew(k, dir, temp, b); err != nil {
		// A half-written file is of no use to anyone; what kept it from being
		// written may keep it from being removed, too.
		return errors.Join(fmt.Errorf("cannot write %s: %w", name, err), ignoreAbsent(k.Unlink(dir, temp)))
	}
	if err := k.Rename(dir, temp, dir, name, 0); err != nil {
		return errors.Join(fmt.Errorf("cannot put %s in place: %w", name, err), ignoreAbsent(k.Unlink(dir, temp)))
	}
	if err := k.Fsync(dir); err != nil {
		return fmt.Errorf("cannot make %s durable: %w", name, err)
	}
	return nil
}

func ignoreAbsent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func writeNew(k *sys.Kernel, dir *sys.FD, name string, b []byte) error {
	f, err := k.Create(dir, name, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := k.Write(f, b); err != nil {
		return err
	}
	if err := k.Fsync(f); err != nil {
		return err
	}
	return f.Close()
}
