package catalog

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

const (
	indexMagic = "LUPDIDX\x01"
	indexHead  = 24
	recordLen  = 64
)

// racy is how long before the load an object must have come to rest: the
// coarsest clock among file systems in use (vfat, ext3) ticks every two seconds.
const racy = 2 * time.Second

// cachedSets is the number of attribute sets that are kept decoded. Labels
// repeat, so it is ample; signatures (security.ima) differ in each file, and
// keeping those would cost more memory than the index itself.
const cachedSets = 4096

// Index is the cache of what was read from a tree; see the package comment.
// The zero value works and stores nothing. All methods but Save may be called
// from several goroutines.
type Index struct {
	data    []byte // the file
	n       int    // records in data
	sets    []uint32
	blob    []byte
	decoded []atomic.Pointer[map[string][]byte]
	used    []atomic.Uint32 // one bit for each record
	settled int64           // objects with a ctime from here on are racy; ns since the epoch

	mu  sync.Mutex
	put map[key]entry
}

type key struct {
	ino   uint64
	ctime int64
	size  int64
}

func (k key) compare(o key) int {
	return cmp.Or(cmp.Compare(k.ino, o.ino), cmp.Compare(k.ctime, o.ctime), cmp.Compare(k.size, o.size))
}

type entry struct {
	digest change.Digest
	xattrs map[string][]byte
}

// LoadIndex reads the index name below dir. A file that is absent, damaged or
// of another version gives an empty index, which Save will replace.
func LoadIndex(dir *sys.FD, name string) *Index {
	x := newIndex(time.Now())
	if b, err := readFile(dir, name); err == nil && x.parse(b) != nil {
		x = newIndex(time.Now())
	}
	return x
}

func newIndex(now time.Time) *Index {
	return &Index{settled: now.Add(-racy).UnixNano(), put: map[key]entry{}}
}

// parse takes over b.
func (x *Index) parse(b []byte) error {
	if err := unseal(b, indexMagic); err != nil {
		return err
	}
	if len(b) < indexHead {
		return errTruncated
	}
	n, sets, blobLen := binary.LittleEndian.Uint32(b[12:]), binary.LittleEndian.Uint32(b[16:]), binary.LittleEndian.Uint32(b[20:])
	if uint64(len(b)) != indexHead+uint64(n)*recordLen+uint64(blobLen) || uint64(sets) > uint64(blobLen) {
		return errTruncated
	}
	x.data, x.n = b, int(n)
	x.blob = b[indexHead+x.n*recordLen:]
	r := reader{b: x.blob}
	for range sets {
		x.sets = append(x.sets, uint32(len(x.blob)-len(r.b)))
		if r.xattrs(); r.err != nil {
			return r.err
		}
	}
	if len(r.b) != 0 {
		return errors.New("bytes behind the attribute sets")
	}
	var last key
	for i := range x.n {
		k := x.key(i)
		if i > 0 && last.compare(k) >= 0 {
			return errors.New("records out of order")
		}
		last = k
		if int(x.set(i)) > len(x.sets) {
			return fmt.Errorf("record %d: no attribute set %d", i, x.set(i))
		}
	}
	x.decoded = make([]atomic.Pointer[map[string][]byte], min(len(x.sets), cachedSets))
	x.used = make([]atomic.Uint32, (x.n+31)/32)
	return nil
}

func (x *Index) record(i int) []byte {
	return x.data[indexHead+i*recordLen : indexHead+(i+1)*recordLen]
}

func (x *Index) ino(i int) uint64 {
	return binary.LittleEndian.Uint64(x.data[indexHead+i*recordLen:])
}

func (x *Index) key(i int) key {
	r := x.record(i)
	return key{
		binary.LittleEndian.Uint64(r), int64(binary.LittleEndian.Uint64(r[8:])),
		int64(binary.LittleEndian.Uint64(r[16:])),
	}
}

func (x *Index) set(i int) uint32 { return binary.LittleEndian.Uint32(x.record(i)[56:]) }

// find gives the record of a key, or where it would stand.
func (x *Index) find(k key) (int, bool) {
	lo, hi := 0, x.n
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if x.ino(mid) < k.ino || x.ino(mid) == k.ino && x.key(mid).compare(k) < 0 {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo, lo < x.n && x.key(lo) == k
}

// Lookup tells what was read from the object when it was in this state. The
// digest is zero where only the attributes were read. The map is shared: it
// must not be changed.
func (x *Index) Lookup(ino uint64, ctimeNS, size int64) (change.Digest, map[string][]byte, bool) {
	if x == nil {
		return change.Digest{}, nil, false
	}
	k := key{ino, ctimeNS, size}
	if i, ok := x.find(k); ok {
		x.used[i/32].Or(1 << (i % 32))
		d := change.Digest(x.record(i)[24:56])
		if !d.IsZero() {
			return d, x.xattrs(x.set(i)), true
		}
		// What was put since then may know more.
		if e, ok := x.fresh(k); ok {
			return e.digest, e.xattrs, true
		}
		return d, x.xattrs(x.set(i)), true
	}
	e, ok := x.fresh(k)
	return e.digest, e.xattrs, ok
}

func (x *Index) fresh(k key) (entry, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	e, ok := x.put[k]
	return e, ok
}

func (x *Index) xattrs(set uint32) map[string][]byte {
	if set == 0 {
		return nil
	}
	i := int(set) - 1
	if i < len(x.decoded) {
		if m := x.decoded[i].Load(); m != nil {
			return *m
		}
	}
	r := reader{b: x.blob[x.sets[i]:]}
	m := r.xattrs()
	if i < len(x.decoded) {
		x.decoded[i].Store(&m)
	}
	return m
}

// Put remembers what was read from an object. The caller has looked at the
// object after the read and found it in this state. A racy object is not
// remembered.
func (x *Index) Put(ino uint64, ctimeNS, size int64, d change.Digest, xattrs map[string][]byte) {
	if x == nil || ctimeNS >= x.settled {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.put[key{ino, ctimeNS, size}] = entry{d, xattrs}
}

// PutOwn is Put of an object in a folder that only we write to: it cannot change
// unseen, however young it is.
func (x *Index) PutOwn(ino uint64, ctimeNS, size int64, d change.Digest, xattrs map[string][]byte) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.put == nil {
		x.put = map[key]entry{}
	}
	x.put[key{ino, ctimeNS, size}] = entry{d, xattrs}
}

// Save writes the index to name below dir, replacing it at once. Dropped are
// records of inodes that were met in another state and, when this run has
// looked up at least half of what was loaded (a whole tree, not a small
// update), all that it did not look up. Where nothing was put and nothing is
// dropped, nothing is written.
func (x *Index) Save(k *sys.Kernel, dir *sys.FD, name string) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	b, changed, err := x.encode()
	if err != nil {
		return fmt.Errorf("cannot save index %s: %w", name, err)
	}
	if !changed {
		return nil
	}
	if err := writeFile(k, dir, name, b); err != nil {
		return fmt.Errorf("cannot save index: %w", err)
	}
	return nil
}

func (x *Index) isUsed(i int) bool { return x.used[i/32].Load()&(1<<(i%32)) != 0 }

func (x *Index) encode() (b []byte, changed bool, err error) {
	used := 0
	for i := range x.n {
		if x.isUsed(i) {
			used++
		}
	}
	whole := 2*used >= x.n
	fresh := make([]key, 0, len(x.put))
	seen := make(map[uint64]bool, len(x.put))
	for k := range x.put {
		fresh = append(fresh, k)
		seen[k.ino] = true
	}
	slices.SortFunc(fresh, key.compare)
	var keep []int
	for i := range x.n {
		k := x.key(i)
		if _, again := x.put[k]; again || !x.isUsed(i) && (whole || seen[k.ino]) {
			continue
		}
		keep = append(keep, i)
	}
	if len(fresh) == 0 && len(keep) == x.n {
		return nil, false, nil
	}
	total := len(keep) + len(fresh)
	if uint64(total) > math.MaxUint32/recordLen {
		return nil, false, fmt.Errorf("%d objects are too many", total)
	}
	b = make([]byte, indexHead, indexHead+total*recordLen+len(x.blob)+1024)
	copy(b, indexMagic)
	binary.LittleEndian.PutUint32(b[12:], uint32(total))
	sets := setWriter{ids: map[string]uint32{}}
	for len(keep) > 0 || len(fresh) > 0 {
		if len(fresh) == 0 || len(keep) > 0 && x.key(keep[0]).compare(fresh[0]) < 0 {
			i := keep[0]
			keep = keep[1:]
			b = append(b, x.record(i)[:56]...)
			b = binary.LittleEndian.AppendUint64(b, uint64(sets.raw(x.rawSet(x.set(i)))))
			continue
		}
		k := fresh[0]
		fresh = fresh[1:]
		e := x.put[k]
		b = binary.LittleEndian.AppendUint64(b, k.ino)
		b = binary.LittleEndian.AppendUint64(b, uint64(k.ctime))
		b = binary.LittleEndian.AppendUint64(b, uint64(k.size))
		b = append(b, e.digest[:]...)
		var set []byte
		if len(e.xattrs) > 0 {
			sets.buf = appendXattrs(sets.buf[:0], e.xattrs)
			set = sets.buf
		}
		b = binary.LittleEndian.AppendUint64(b, uint64(sets.raw(set)))
	}
	binary.LittleEndian.PutUint32(b[16:], uint32(len(sets.ids)))
	binary.LittleEndian.PutUint32(b[20:], uint32(len(sets.blob)))
	b = append(b, sets.blob...)
	seal(b)
	return b, true, nil
}

func (x *Index) rawSet(set uint32) []byte {
	if set == 0 {
		return nil
	}
	end := uint32(len(x.blob))
	if int(set) < len(x.sets) {
		end = x.sets[set]
	}
	return x.blob[x.sets[set-1]:end]
}

// setWriter gives equal attribute sets one number.
type setWriter struct {
	ids  map[string]uint32
	blob []byte
	buf  []byte
}

func (w *setWriter) raw(set []byte) uint32 {
	if len(set) == 0 {
		return 0
	}
	if id, ok := w.ids[string(set)]; ok {
		return id
	}
	id := uint32(len(w.ids) + 1)
	w.ids[string(set)] = id
	w.blob = append(w.blob, set...)
	return id
}
