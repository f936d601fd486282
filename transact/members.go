package transact

import (
	"cmp"
	"hash/maphash"
	"path"
	"slices"

	"github.com/liveupd/liveupd/internal/journal"
)

// members finds the journal's objects below folders that move, by their paths. It
// keeps a few bytes for each and leaves the rest in the journal; it is made when it
// is first asked, because most transactions move no folder.
type members struct {
	ops  *journal.Ops
	made bool
	seed maphash.Seed
	at   []memberAt // by hash
	// children counts the new members directly in each folder, by the hash of its path.
	children map[uint64]int
	// below counts the members of each folder that moves whole.
	below map[side]int
}

type memberAt struct {
	hash uint64
	op   int32
}

// side is a folder that moves whole, with its old or its new content.
type side struct {
	top string
	old bool
}

func (x *members) hash(p string) uint64 { return maphash.String(x.seed, p) }

func (x *members) make() error {
	if x.made {
		return nil
	}
	x.seed, x.children, x.below = maphash.MakeSeed(), map[uint64]int{}, map[side]int{}
	tops := map[string]bool{}
	for op, err := range x.ops.Where(journal.OldDir | journal.NewDir) {
		if err != nil {
			return err
		}
		if op.Kind != journal.Member && op.Staged != "" {
			tops[op.Path] = true
		}
	}
	for i := range x.ops.Len() {
		if !x.ops.Mark(i).Any(journal.Below) {
			continue
		}
		op, err := x.ops.At(i)
		if err != nil {
			return err
		}
		x.at = append(x.at, memberAt{x.hash(op.Path), int32(i)})
		if op.New != nil {
			x.children[x.hash(path.Dir(op.Path))]++
		}
		top := path.Dir(op.Path)
		for top != "/" && !tops[top] {
			top = path.Dir(top)
		}
		x.below[side{top, op.Old != nil}]++
	}
	slices.SortFunc(x.at, func(a, b memberAt) int { return cmp.Compare(a.hash, b.hash) })
	x.made = true
	return nil
}

// find gives the member at a path; nil for none.
func (x *members) find(p string) (*journal.Op, error) {
	if err := x.make(); err != nil {
		return nil, err
	}
	h := x.hash(p)
	i, _ := slices.BinarySearchFunc(x.at, h, func(m memberAt, h uint64) int { return cmp.Compare(m.hash, h) })
	for ; i < len(x.at) && x.at[i].hash == h; i++ {
		op, err := x.ops.At(int(x.at[i].op))
		if err != nil {
			return nil, err
		}
		if op.Path == p {
			return op, nil
		}
	}
	return nil, nil
}

// countNew is how many new members lie directly in a folder.
func (x *members) countNew(folder string) (int, error) {
	if err := x.make(); err != nil {
		return 0, err
	}
	return x.children[x.hash(folder)], nil
}

// countBelow is how many members a folder that moves whole has on one side.
func (x *members) countBelow(top string, old bool) (int, error) {
	if err := x.make(); err != nil {
		return 0, err
	}
	return x.below[side{top, old}], nil
}
