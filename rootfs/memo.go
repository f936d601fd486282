package rootfs

import "sync"

// memo computes each key's value once, also when several goroutines ask at
// the same time. A computation must not ask for its own key.
type memo[K comparable, V any] struct {
	m sync.Map
}

type memoEntry[V any] struct {
	once sync.Once
	val  V
}

func (c *memo[K, V]) get(key K, compute func() V) V {
	e, ok := c.m.Load(key)
	if !ok {
		e, _ = c.m.LoadOrStore(key, new(memoEntry[V]))
	}
	entry := e.(*memoEntry[V])
	entry.once.Do(func() { entry.val = compute() })
	return entry.val
}
