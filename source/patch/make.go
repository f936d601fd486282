package patch

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// Options say how a patch is made. The zero value is good.
type Options struct {
	// Level is the zstd program's, 1 to 22; 0 is 19.
	Level int
	// Zstd is the path of the zstd program; "" looks for it where programs of the
	// system lie, "-" uses the encoder that is built in.
	Zstd     string
	Whole    bool                    // both trees are whole systems
	Progress func(done, total int64) // bytes of what changes
}

// Summary is what Make did.
type Summary struct {
	Encoder string
	Entries int   // that changed or came
	Gone    int   // paths
	Bases   int   // files of the old tree that the patch needs
	Content int64 // bytes of the archive that it stands for
	Bytes   int64 // of the patch
}

// piece is a stretch of the archive: bytes, or a range of a file of the new tree.
type piece struct {
	literal  []byte
	file     string
	off, len int64
	base     string // "": no part of the old tree helps
	baseOff  int64
	baseLen  int64
}

func (p *piece) size() int64 { return int64(len(p.literal)) + p.len }

// maker is one Make.
type maker struct {
	o        Options
	enc      encoder
	old, new *tree
	byShape  map[string][]string // regular files of the old tree, by shape
	byDigest map[change.Digest]string
	groups   [][]piece
	cur      []piece
	size     int64
	dict     int64
	entries  int
}

// Make writes what turns the old tree into the new one. It returns a Summary with
// neither Entries nor Gone, and writes nothing, where they are the same.
func Make(ctx context.Context, old, new *sys.FD, out io.Writer, o Options) (*Summary, error) {
	m := &maker{o: o, byShape: map[string][]string{}, byDigest: map[change.Digest]string{}}
	var err error
	if m.enc, err = findEncoder(ctx, o); err != nil {
		return nil, err
	}
	if m.old, err = walk(ctx, old); err != nil {
		return nil, err
	}
	if m.new, err = walk(ctx, new); err != nil {
		return nil, err
	}
	for _, p := range m.old.sorted() {
		if m.old.nodes[p].Type == change.Regular {
			m.byShape[shape(p)] = append(m.byShape[shape(p)], p)
		}
	}
	goes, err := gone(m.old, m.new)
	if err != nil {
		return nil, err
	}
	for _, g := range goes {
		if !g.Digest.IsZero() && m.byDigest[g.Digest] == "" {
			m.byDigest[g.Digest] = string(g.Path)
		}
	}
	if err := m.collect(ctx); err != nil {
		return nil, err
	}
	s := &Summary{Encoder: m.enc.name, Entries: m.entries, Gone: len(goes)}
	if m.entries == 0 && len(goes) == 0 {
		return s, nil
	}
	m.add(piece{literal: make([]byte, 2*blockSize)}) // the end of an archive
	m.flush()
	return s, m.write(ctx, goes, out, s)
}

// collect goes through what changed, in the order of paths.
func (m *maker) collect(ctx context.Context) error {
	want := map[string]bool{}
	only := true // nothing but what is carried always
	for _, p := range m.new.sorted() {
		c, err := changed(m.old, m.new, p)
		if err != nil {
			return err
		}
		if !c {
			continue
		}
		want[p] = true
		only = only && p == manifestName && m.old.nodes[p] != nil
		if first := m.new.link(p); first != "" {
			want[first] = true
		}
	}
	if only {
		return m.manifestOnly(want)
	}
	// The links of an inode come together: an archive links to what it holds.
	for _, p := range m.new.sorted() {
		if first := m.new.link(p); first != "" && want[first] {
			want[p] = true
		}
	}
	for _, p := range m.new.sorted() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if want[p] {
			if err := m.entry(p); err != nil {
				return fmt.Errorf("cannot read %s: %w", p, err)
			}
		}
	}
	return nil
}

// manifestOnly: the manifest alone is an update only where it is another one.
func (m *maker) manifestOnly(want map[string]bool) error {
	if !want[manifestName] {
		return nil
	}
	a, err := m.old.digest(manifestName)
	if err != nil {
		return err
	}
	if b, err := m.new.digest(manifestName); err != nil || a == b {
		return err
	}
	return m.entry(manifestName)
}

// entry puts one path into the archive.
func (m *maker) entry(p string) error {
	n, link := m.new.nodes[p], m.new.link(p)
	m.entries++
	var data []extent
	sparse := false
	if link == "" && n.Type == change.Regular {
		var err error
		if data, sparse, err = m.new.holes(p); err != nil {
			return err
		}
	}
	m.add(piece{literal: headers(p, n, link, sparse, data)})
	if link != "" || n.Type != change.Regular || n.Size == 0 {
		return nil
	}
	if sparse {
		m.pieces(p, data)
		return nil
	}
	base, err := m.base(p)
	if err != nil {
		return err
	}
	// A file that fits into a group stays in one.
	step := n.Size
	if step > groupBytes {
		step = groupBytes / 2
	}
	for off := int64(0); off < n.Size; off += step {
		part := piece{file: p, off: off, len: min(step, n.Size-off)}
		if base != "" {
			size := m.old.nodes[base].Size
			part.base, part.baseLen = base, size
			if size > dictBytes || step < n.Size {
				// What the old file has around the same place.
				margin := (int64(dictBytes) - part.len) / 2
				part.baseOff = max(0, min(off-margin, size-dictBytes))
				part.baseLen = min(size-part.baseOff, dictBytes)
			}
		}
		m.add(part)
	}
	m.add(piece{literal: padding(n.Size)})
	return nil
}

func (m *maker) add(p piece) {
	if len(m.cur) > 0 && (m.size+p.size() > groupBytes || m.dict+p.baseLen > dictBytes) {
		m.flush()
	}
	m.cur = append(m.cur, p)
	m.size += p.size()
	m.dict += p.baseLen
}

func (m *maker) flush() {
	if len(m.cur) > 0 {
		m.groups = append(m.groups, m.cur)
	}
	m.cur, m.size, m.dict = nil, 0, 0
}

var digits = regexp.MustCompile(`[0-9]+`)

// shape is a path without its numbers: /usr/lib/libz.so.1.2.13 and 1.3.1 have one.
func shape(p string) string { return digits.ReplaceAllString(p, "#") }

// machinesOwn are folders where each machine may have another file than the tree:
// a patch does not need them.
var machinesOwn = []string{"/etc/", "/var/", "/root/", "/home/"}

// base is the file of the old tree that a file of the new one is best made of,
// "" where none pays.
func (m *maker) base(p string) (string, error) {
	if p == manifestName {
		return "", nil
	}
	for _, dir := range machinesOwn {
		if strings.HasPrefix(p, dir) {
			return "", nil
		}
	}
	candidates := []string{p}
	for _, other := range m.byShape[shape(p)] {
		if other != p {
			candidates = append(candidates, other)
		}
	}
	// The nearest version is the last one.
	slices.Reverse(candidates[1:])
	for i, c := range candidates {
		n := m.old.nodes[c]
		if n == nil || n.Type != change.Regular || n.Size == 0 || i > 2 || underAny(c, machinesOwn) {
			continue
		}
		if ok, err := m.pays(p, c); err != nil || ok {
			return c, err
		}
	}
	d, err := m.new.digest(p)
	if err != nil {
		return "", err
	}
	if moved := m.byDigest[d]; moved != "" && !underAny(moved, machinesOwn) {
		return moved, nil
	}
	return "", nil
}

func underAny(p string, dirs []string) bool {
	return slices.ContainsFunc(dirs, func(d string) bool { return strings.HasPrefix(p, d) })
}

// sample is how much of two files is compared to learn whether one helps.
const sample = 1 << 20

// pays tells whether a file packs at least a fifth better with another at hand: each
// file that a patch needs is one that a machine must have.
func (m *maker) pays(p, base string) (bool, error) {
	a, b := m.new.nodes[p], m.old.nodes[base]
	if a.Size == b.Size {
		x, err := m.new.digest(p)
		if err != nil {
			return false, err
		}
		y, err := m.old.digest(base)
		if err != nil || x == y {
			return x == y, err
		}
	}
	text, err := beginning(m.new, p, sample)
	if err != nil {
		return false, err
	}
	dict, err := beginning(m.old, base, 2*sample)
	if err != nil {
		return false, err
	}
	with, err := quickSize(text, dict)
	if err != nil {
		return false, err
	}
	without, err := quickSize(text, nil)
	return with*5 <= without*4, err
}

func beginning(t *tree, p string, limit int64) ([]byte, error) {
	return t.read(p, 0, min(limit, t.nodes[p].Size), nil)
}

// read appends a range of a file to b.
func (t *tree) read(p string, off, n int64, b []byte) ([]byte, error) {
	f, err := t.open(p)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	at := len(b)
	b = append(b, make([]byte, n)...)
	if _, err := io.ReadFull(io.NewSectionReader(f, off, n), b[at:]); err != nil {
		return nil, fmt.Errorf("%s changed while it was read: %w", path.Clean(p), err)
	}
	return b, nil
}

// write packs the groups, side by side, and writes all in order.
func (m *maker) write(ctx context.Context, goes []Gone, out io.Writer, s *Summary) error {
	h := head{Encoder: m.enc.name, Whole: m.o.Whole, Gone: goes, Groups: make([]group, len(m.groups))}
	number := map[string]int{}
	for _, g := range m.groups {
		for _, p := range g {
			if p.base != "" {
				number[p.base] = 0
			}
		}
	}
	for _, p := range m.old.sorted() {
		if _, ok := number[p]; !ok {
			continue
		}
		d, err := m.old.digest(p)
		if err != nil {
			return err
		}
		number[p] = len(h.Bases)
		b := Base{Path: []byte(p), Size: m.old.nodes[p].Size, Digest: d}
		if n := m.new.nodes[p]; n != nil && n.Type == change.Regular {
			if b.Becomes, err = m.new.digest(p); err != nil {
				return err
			}
		}
		h.Bases = append(h.Bases, b)
	}
	frames := make([][]byte, len(m.groups))
	var total, done int64
	for _, g := range m.groups {
		for _, p := range g {
			total += p.size()
		}
	}
	var mu sync.Mutex
	pack := func(i int) error {
		frame, size, err := m.pack(ctx, m.groups[i], &h.Groups[i], number)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		frames[i] = frame
		if done += size; m.o.Progress != nil {
			m.o.Progress(done, total)
		}
		return nil
	}
	if err := sideBySide(ctx, len(m.groups), pack); err != nil {
		return err
	}
	text, err := json.Marshal(&h)
	if err != nil {
		return err
	}
	if err := h.check(); err != nil {
		return fmt.Errorf("cannot write a patch of this size: %w", err)
	}
	first, err := m.enc.pack(ctx, text, nil)
	if err != nil {
		return err
	}
	s.Bases, s.Content = len(h.Bases), total
	for i, frame := range append([][]byte{first}, frames...) {
		lead := binary.LittleEndian.AppendUint32(nil, uint32(len(frame)))
		if i == 0 {
			lead = append([]byte(magic), lead...)
		}
		s.Bytes += int64(len(lead) + len(frame))
		if _, err := out.Write(lead); err != nil {
			return err
		}
		if _, err := out.Write(frame); err != nil {
			return err
		}
	}
	return nil
}

// pack makes one group's frame.
func (m *maker) pack(ctx context.Context, pieces []piece, g *group, number map[string]int) ([]byte, int64, error) {
	var text, dict []byte
	var err error
	for _, p := range pieces {
		text = append(text, p.literal...)
		if p.file != "" {
			if text, err = m.new.read(p.file, p.off, p.len, text); err != nil {
				return nil, 0, err
			}
		}
		if p.base == "" {
			continue
		}
		if dict, err = m.old.read(p.base, p.baseOff, p.baseLen, dict); err != nil {
			return nil, 0, err
		}
		g.Dict = append(g.Dict, part{Base: number[p.base], Off: p.baseOff, Len: p.baseLen})
	}
	g.Size, g.Digest = int64(len(text)), change.Digest(sha256.Sum256(text))
	frame, err := m.enc.pack(ctx, text, dict)
	return frame, g.Size, err
}

// sideBySide calls do for 0 to n-1, as many at once as there are processors but no
// more than 4, for each needs half a gigabyte; the first error ends it.
func sideBySide(ctx context.Context, n int, do func(i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := make(chan int)
	var wg sync.WaitGroup
	for range min(n, runtime.NumCPU(), 4) {
		wg.Go(func() {
			for i := range next {
				if err := do(i); err != nil {
					cancel(err)
				}
			}
		})
	}
	for i := range n {
		select {
		case next <- i:
		case <-ctx.Done():
		}
	}
	close(next)
	wg.Wait()
	return context.Cause(ctx)
}
