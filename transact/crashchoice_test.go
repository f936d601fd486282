package transact

import (
	"fmt"
	"math/rand/v2"
	"slices"
)

// pinned tells for each effect whether a sync has made it durable.
func pinned(effects []effect, model crashModel) []bool {
	out := make([]bool, len(effects))
	for s, sync := range effects {
		if sync.kind != syncEffect {
			continue
		}
		for i := range s {
			e := &effects[i]
			if e.vol != sync.vol {
				continue
			}
			switch {
			case sync.whole, e.kind == syncEffect:
				out[i] = true
			case e.kind == entryEffect && slices.Contains(e.dirs, sync.inode),
				e.kind != entryEffect && e.inode == sync.inode:
				out[i] = true
			case model == journalled && e.kind != dataEffect:
				out[i] = true
			}
		}
		out[s] = true
	}
	return out
}

// closure adds to a set what cannot be there without it. false: some of that is pinned,
// so the set is no state of any disk.
func closure(effects []effect, pins []bool, drop map[int]bool) bool {
	for i := range effects {
		if !drop[i] || effects[i].kind == dataEffect {
			continue
		}
		for j := i + 1; j < len(effects); j++ {
			e := &effects[j]
			depends := e.kind != dataEffect && slices.ContainsFunc(e.keys, func(k string) bool { return slices.Contains(effects[i].keys, k) }) ||
				e.kind == entryEffect && effects[i].gives != 0 && slices.Contains(e.dirs, effects[i].gives)
			if !depends || drop[j] {
				continue
			}
			if pins[j] {
				return false
			}
			drop[j] = true
		}
	}
	return true
}

// loss is what one crash loses of the effects.
type loss struct {
	drop    map[int]bool
	variant int // in which way data are missing
}

// chooser makes the losses of one crash.
type chooser struct {
	effects []effect
	model   crashModel
	pins    []bool
	loose   []int // names and metadata that no sync has pinned
	data    []int
	vols    []int // that have something loose
	rnd     *rand.Rand
}

func newChooser(effects []effect, model crashModel) *chooser {
	c := &chooser{effects: effects, model: model, pins: pinned(effects, model)}
	for i := range effects {
		switch {
		case c.pins[i] || effects[i].kind == syncEffect:
			continue
		case effects[i].kind == dataEffect:
			c.data = append(c.data, i)
		default:
			c.loose = append(c.loose, i)
		}
		if !slices.Contains(c.vols, effects[i].vol) {
			c.vols = append(c.vols, effects[i].vol)
		}
	}
	return c
}

// systematic counts the losses that are not drawn: see choose.
func (c *chooser) systematic() int {
	n := len(c.loose)
	switch {
	case c.model != anyOrder:
		// One volume's moment is the first, the other volumes' the last, and the other way round.
		return 2 + 2*len(c.vols)
	case n <= 8: // also each two
		return 2 + 2*n + n*(n-1)/2
	}
	return 2 + 2*n
}

// choose makes the j-th loss. The first ones are the same for each seed: nothing that
// is loose persisted; all but the data did; then, by model, each volume alone lost or kept;
// or each effect alone lost, each alone kept, each two lost. The others are drawn by
// rnd. false: the loss is no state of any disk.
func (c *chooser) choose(j int, rnd *rand.Rand) (loss, bool) {
	c.rnd = rnd
	l := loss{drop: map[int]bool{}, variant: rnd.IntN(variants)}
	n := len(c.loose)
	switch {
	case j == 0:
		c.some(l, c.loose, 1)
		c.some(l, c.data, 1)
	case j == 1:
		c.some(l, c.data, 1)
	case c.model != anyOrder && j < c.systematic():
		vol, alone := c.vols[(j-2)/2], j%2 == 0
		for _, i := range slices.Concat(c.loose, c.data) {
			l.drop[i] = (c.effects[i].vol == vol) == alone
		}
	case c.model != anyOrder:
		for _, vol := range c.vols {
			c.cut(l, vol)
		}
		c.some(l, c.data, rnd.Float64())
	case j < 2+n:
		l.drop[c.loose[j-2]] = true
	case j < 2+2*n:
		c.some(l, c.loose, 1)
		delete(l.drop, c.loose[j-2-n])
		c.some(l, c.data, 0.5)
	case j < c.systematic():
		a, b := pair(j - 2 - 2*n)
		l.drop[c.loose[a]], l.drop[c.loose[b]] = true, true
	default:
		likely := map[int]float64{}
		for _, vol := range c.vols {
			likely[vol] = []float64{0, 1, rnd.Float64(), rnd.Float64()}[rnd.IntN(4)]
		}
		for _, i := range slices.Concat(c.loose, c.data) {
			if rnd.Float64() < likely[c.effects[i].vol] {
				l.drop[i] = true
			}
		}
	}
	for i, lost := range l.drop {
		if !lost {
			delete(l.drop, i)
		}
	}
	// Of one file, what was written later is lost first.
	for i := range l.drop {
		if c.effects[i].kind != dataEffect {
			continue
		}
		for _, k := range c.data {
			if k > i && c.effects[k].inode == c.effects[i].inode {
				l.drop[k] = true
			}
		}
	}
	return l, closure(c.effects, c.pins, l.drop)
}

// pair gives the k-th of all pairs a < b.
func pair(k int) (a, b int) {
	for b = 1; k >= b; b++ {
		k -= b
	}
	return k, b
}

func (c *chooser) some(l loss, list []int, likely float64) {
	for _, i := range list {
		if c.rnd.Float64() < likely {
			l.drop[i] = true
		}
	}
}

// cut has a volume lose all after a moment, but for what a log tree holds.
func (c *chooser) cut(l loss, vol int) {
	var on []int
	for _, i := range c.loose {
		if c.effects[i].vol == vol {
			on = append(on, i)
		}
	}
	from := c.rnd.IntN(len(on) + 1)
	later := on[from:]
	for _, i := range later {
		l.drop[i] = true
	}
	if c.model != logged || len(later) == 0 {
		return
	}
	for range c.rnd.IntN(4) {
		about := c.effects[later[c.rnd.IntN(len(later))]]
		for _, i := range later {
			e := c.effects[i]
			if e.inode != 0 && e.inode == about.inode || len(about.dirs) > 0 && slices.Contains(e.dirs, about.dirs[0]) {
				delete(l.drop, i)
			}
		}
	}
}

// lose makes the effects of a set unhappen, the last one first.
func lose(effects []effect, l loss) error {
	for i := range slices.Backward(effects) {
		if l.drop[i] {
			if err := effects[i].undo(l.variant); err != nil {
				return fmt.Errorf("%s: %w", effects[i].what, err)
			}
		}
	}
	return nil
}
