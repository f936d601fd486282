package guard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"

	"github.com/liveupd/liveupd/change"
)

// groups are the multicast groups of rtnetlink(7) that tell of what Compare looks at.
var groups = []uint{
	syscall.RTNLGRP_LINK, syscall.RTNLGRP_NEIGH, syscall.RTNLGRP_IPV4_IFADDR, syscall.RTNLGRP_IPV4_ROUTE, syscall.RTNLGRP_IPV4_RULE,
	syscall.RTNLGRP_IPV6_IFADDR, syscall.RTNLGRP_IPV6_ROUTE, rtnlgrpIPv6Rule,
}

const rtnlgrpIPv6Rule = 19

// How often is looked: soon after an event, and now and then without one, for an
// event may be lost.
const (
	eventPause = 100 * time.Millisecond
	idlePause  = 2 * time.Second
	// share is the part of the time that may go into looking, as 1/share: a
	// picture of a router's table takes long.
	share = 5
)

// Loss is a finding with the time when it was first seen lost.
type Loss struct {
	change.NetworkFinding
	Since time.Time
}

// away is what is known of one thing over time.
type away struct {
	since time.Time // the zero value while it is there
	last  time.Time // when it was lost for the last time
	total time.Duration
	times int
}

// Monitor compares the network with a picture of before, all the time until it is closed.
type Monitor struct {
	before *change.Network
	ignore []string
	take   func() (*change.Network, error)
	ask    func(*change.Network) // the routers, whether they are there
	events chan struct{}
	done   chan struct{}
	closed sync.WaitGroup
	stop   func()

	// looking is held from a picture to its comparison: an older one must not come over a newer.
	looking sync.Mutex

	mu    sync.Mutex
	now   []change.NetworkFinding
	away  map[string]*away
	err   error
	moved time.Time // when anything was lost or came back
}

// Watch begins to compare with the picture of before; nil stands for what is now. Links
// that match ignore count nothing.
func Watch(before *change.Network, ignore []string) (*Monitor, error) {
	sock, err := nl.Subscribe(syscall.NETLINK_ROUTE, groups...)
	if err != nil {
		return nil, fmt.Errorf("cannot listen to what becomes of the network: %w", err)
	}
	m := newMonitor(before, ignore, Take, probe)
	m.stop = sock.Close
	if m.before == nil {
		// The routers are asked first: one that has not been spoken to for a while is
		// not known to answer.
		if m.before, err = Take(); err == nil {
			probe(m.before)
			m.before, err = settled(m.before)
		}
		if err != nil {
			sock.Close()
			return nil, err
		}
	}
	m.closed.Go(func() {
		for {
			_, _, err := sock.Receive()
			select {
			case <-m.done:
				return
			default:
			}
			if err != nil && !errors.Is(err, syscall.ENOBUFS) {
				// Without events it is looked at now and then.
				return
			}
			select {
			case m.events <- struct{}{}:
			default:
			}
		}
	})
	m.closed.Go(m.loop)
	return m, nil
}

func newMonitor(before *change.Network, ignore []string, take func() (*change.Network, error), ask func(*change.Network)) *Monitor {
	return &Monitor{
		before: before, ignore: ignore, take: take, ask: ask, away: map[string]*away{}, stop: func() {},
		events: make(chan struct{}, 1), done: make(chan struct{}),
	}
}

// settled waits for the routers' answers, which come within milliseconds or not at all.
func settled(n *change.Network) (*change.Network, error) {
	var err error
	for range 10 {
		pending := false
		for _, e := range n.Neighbours {
			pending = pending || e.State != answers
		}
		if !pending {
			return n, nil
		}
		time.Sleep(50 * time.Millisecond)
		if n, err = Take(); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// Before is the picture that it compares with.
func (m *Monitor) Before() *change.Network { return m.before }

// Close ends the comparing.
func (m *Monitor) Close() {
	select {
	case <-m.done:
		return
	default:
	}
	close(m.done)
	m.stop()
	m.closed.Wait()
}

func (m *Monitor) loop() {
	pause, rest := idlePause, eventPause
	for {
		select {
		case <-m.done:
			return
		case <-m.events:
		case <-time.After(pause):
		}
		select {
		case <-m.done:
			return
		case <-time.After(rest):
		}
		took := m.look()
		pause, rest = max(idlePause, took*share), max(eventPause, took*share)
	}
}

// look compares once and notes what went and what came. It tells how long it took.
func (m *Monitor) look() time.Duration {
	m.looking.Lock()
	defer m.looking.Unlock()
	began := time.Now()
	after, err := m.take()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err = err; err != nil {
		return time.Since(began)
	}
	m.now = Compare(m.before, after, m.ignore)
	for _, f := range m.now {
		key := f.Kind + "\x00" + f.What
		a := m.away[key]
		if a == nil {
			a = &away{}
			m.away[key] = a
		}
		gone := f.Result == change.NetLost
		switch {
		case gone && a.since.IsZero():
			a.since, a.last, m.moved = began, began, began
			a.times++
		case !gone && !a.since.IsZero():
			a.total += began.Sub(a.since)
			a.since, m.moved = time.Time{}, began
		}
	}
	return time.Since(began)
}

// Lost looks now and tells what is missing, and since when. An error says that it
// cannot be seen.
func (m *Monitor) Lost() ([]Loss, error) {
	m.look()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return nil, m.err
	}
	var out []Loss
	for _, f := range m.now {
		if f.Result == change.NetLost {
			out = append(out, Loss{f, m.away[f.Kind+"\x00"+f.What].since})
		}
	}
	return out, nil
}

// Settle watches for at least the time watch, and as long as something is missing
// until it has been for the time wait. It tells what is still missing then. What goes
// and comes all the time ends it, too.
func (m *Monitor) Settle(ctx context.Context, watch, wait time.Duration) ([]Loss, error) {
	began := time.Now()
	asked := time.Time{}
	for {
		look := time.Now()
		list, err := m.Lost()
		if err != nil {
			return nil, err
		}
		over := time.Since(began)
		if len(list) == 0 {
			m.mu.Lock()
			calm := time.Since(m.moved) > min(time.Second, wait)
			m.mu.Unlock()
			// The routers are asked when all else is there.
			if over >= watch && asked.IsZero() {
				m.ask(m.before)
				asked = time.Now()
			}
			if !asked.IsZero() && (m.answered() && calm || over > watch+2*wait) {
				return nil, nil
			}
		} else {
			since := began
			for _, l := range list {
				if l.Since.After(since) {
					since = l.Since
				}
			}
			if time.Since(since) >= wait || over > watch+2*wait {
				return list, nil
			}
			// A router that came late is heard of only when it is asked again.
			if time.Since(asked) > 2*time.Second && !slices.ContainsFunc(list, func(l Loss) bool { return l.Kind != "neighbour" }) {
				m.ask(m.before)
				asked = time.Now()
			}
		}
		select {
		case <-ctx.Done():
			return list, nil
		case <-time.After(max(eventPause, time.Since(look))): // half of the time at most
		}
	}
}

// answered tells whether no router is still being asked.
func (m *Monitor) answered() bool {
	n, err := m.take()
	if err != nil {
		return true
	}
	for _, e := range n.Neighbours {
		for _, was := range m.before.Neighbours {
			if was.State == answers && was.IP == e.IP && was.Link == e.Link && e.State == unknown {
				return false
			}
		}
	}
	return true
}

// Findings are all that count, as they are by the last look; what was away for a while is told as that.
func (m *Monitor) Findings() []Loss {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []Loss
	for _, f := range m.now {
		a := m.away[f.Kind+"\x00"+f.What]
		if f.Result == change.NetKept && a.times > 0 {
			f.Result, f.USec = change.NetBack, a.total.Microseconds()
			if a.times > 1 {
				f.Detail = fmt.Sprintf("it was away %d times", a.times)
			}
		}
		out = append(out, Loss{f, a.last})
	}
	return out
}

// probe asks the routers of the picture whether they are there: without traffic
// the kernel would go on believing what it knew.
func probe(n *change.Network) {
	for _, r := range n.Routes {
		if !r.Default() {
			continue
		}
		for _, hop := range r.Hops {
			link, err := netlink.LinkByName(hop.Link)
			ip := net.ParseIP(hop.Via)
			if err != nil || ip == nil {
				continue
			}
			entry := &netlink.Neigh{LinkIndex: link.Attrs().Index, IP: ip, Family: netlink.FAMILY_V4}
			if ip.To4() == nil {
				entry.Family = netlink.FAMILY_V6
			}
			// What is known by heart stays as it is; what was confirmed may have been before.
			if known := neighbour(link.Attrs().Index, ip); known != nil && known.State&(nudReachable|nudStale|nudDelay) != 0 {
				entry.State, entry.HardwareAddr = nudProbe, known.HardwareAddr
				_ = netlink.NeighSet(entry) // without the right to ask, what the kernel knows counts
			} else if known == nil || known.State&nudFailed != 0 {
				entry.Flags = ntfUse
				_ = netlink.NeighSet(entry)
			}
		}
	}
}

const ntfUse = 0x01

func neighbour(link int, ip net.IP) *netlink.Neigh {
	list, err := netlink.NeighList(link, 0)
	if err != nil {
		return nil
	}
	for _, e := range list {
		if e.IP.Equal(ip) {
			return &e
		}
	}
	return nil
}
