// Package guard knows what the machine is reached by, and notices when an
// update takes it away. It is the only package that speaks rtnetlink and
// sock_diag.
//
//  1. Take reads a picture: links, addresses, routes, the rules that lead to
//     them, the routers' entries in the neighbour tables.
//  2. Compare says of everything that counts in the picture of before what
//     became of it. It is a function of two values. Lifetimes, counters, what
//     comes in addition and what belongs to containers play no part.
//  3. A Monitor compares whenever the kernel tells of a change, so that it is
//     known when a thing was lost, and that it came back by itself.
//  4. PutBack makes again what is missing: the last resort after a rollback.
package guard

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"

	"github.com/liveupd/liveupd/change"
)

// Numbers of the kernel's interface that no package names for us.
const (
	tableMain  = 254
	tableLocal = 255

	flagUp      = 0x1     // IFF_UP
	flagCarrier = 0x10000 // IFF_LOWER_UP

	addrTemporary  = 0x01 // IFA_F_TEMPORARY (IPv6)
	addrDadFailed  = 0x08
	addrDeprecated = 0x20
	addrTentative  = 0x40
	addrPermanent  = 0x80

	hopDead     = 0x1 // RTNH_F_DEAD
	hopLinkDown = 0x10

	scopeLink = 253

	protoKernel = 2
	protoBoot   = 3
	protoStatic = 4
	protoRA     = 9
	protoDHCP   = 16
)

// dumps is how often a dump that was interrupted by a change is begun anew.
const dumps = 5

// dump reads a list; where it changed meanwhile, once more.
func dump[T any](read func() ([]T, error)) ([]T, error) {
	var list []T
	var err error
	for range dumps {
		if list, err = read(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return list, err
		}
	}
	return list, nil // what there is of it; the next event looks again
}

// Take reads the picture of this network namespace. It changes nothing.
func Take() (*change.Network, error) {
	h, err := netlink.NewHandle(syscall.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("cannot look at the network: %w", err)
	}
	defer h.Close()
	n := &change.Network{}
	names, err := readLinks(h, n)
	if err != nil {
		return nil, fmt.Errorf("cannot look at the network's links: %w", err)
	}
	if err := readAddresses(h, n, names); err != nil {
		return nil, fmt.Errorf("cannot look at the network's addresses: %w", err)
	}
	if err := readRules(h, n); err != nil {
		return nil, fmt.Errorf("cannot look at the network's rules: %w", err)
	}
	if err := readRoutes(h, n, names); err != nil {
		return nil, fmt.Errorf("cannot look at the network's routes: %w", err)
	}
	if err := readNeighbours(h, n, names); err != nil {
		return nil, fmt.Errorf("cannot look at the routers: %w", err)
	}
	return n, nil
}

func readLinks(h *netlink.Handle, n *change.Network) (map[int]string, error) {
	links, err := dump(h.LinkList)
	if err != nil {
		return nil, err
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	for _, l := range links {
		a := l.Attrs()
		link := change.NetLink{
			Index: a.Index, Name: a.Name, Kind: l.Type(), MAC: a.HardwareAddr.String(), Master: names[a.MasterIndex],
			Up: a.RawFlags&flagUp != 0, Carrier: a.RawFlags&flagCarrier != 0,
		}
		// The other end of a veth stands in the same place, and its number may be of
		// another namespace.
		if a.NetNsID < 0 && link.Kind != "veth" && a.ParentIndex != a.Index {
			link.Lower = names[a.ParentIndex]
		}
		n.Links = append(n.Links, link)
	}
	return names, nil
}

func readAddresses(h *netlink.Handle, n *change.Network, names map[int]string) error {
	list, err := dump(func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return err
	}
	for _, a := range list {
		// One that is still being tried for duplicates cannot be spoken to yet.
		if a.Scope >= scopeLink && !a.IP.IsLoopback() || a.Flags&(addrTemporary|addrTentative|addrDadFailed|addrDeprecated) != 0 {
			continue
		}
		p, ok := prefix(a.IPNet)
		if !ok {
			continue
		}
		addr := change.NetAddress{Prefix: p.String(), Link: names[a.LinkIndex], Scope: a.Scope, Dynamic: a.Flags&addrPermanent == 0}
		if addr.Dynamic {
			addr.ValidSec = a.ValidLft
		}
		n.Addresses = append(n.Addresses, addr)
	}
	return nil
}

// readRules reads the rules that lead to a table; those that refuse or jump are
// not what a machine is reached by.
func readRules(h *netlink.Handle, n *change.Network) error {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := dump(func() ([]netlink.Rule, error) { return h.RuleList(family) })
		if errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EOPNOTSUPP) {
			continue // a kernel without policy routing, or without IPv6
		}
		if err != nil {
			return err
		}
		for _, r := range list {
			if r.Table == 0 || r.Table == tableLocal {
				continue
			}
			rule := change.NetRule{
				IPv6: family == netlink.FAMILY_V6, Priority: max(r.Priority, 0), Table: r.Table,
				From: text(r.Src), To: text(r.Dst), In: r.IifName, Out: r.OifName, Mark: r.Mark, Invert: r.Invert,
				Suppress: r.SuppressPrefixlen,
			}
			if r.Mask != nil {
				rule.Mask = *r.Mask
			}
			rule.More = more(r)
			n.Rules = append(n.Rules, rule)
		}
	}
	return nil
}

// more is what a rule asks for beside what PutBack could make again.
func more(r netlink.Rule) string {
	var parts []string
	if r.Tos != 0 {
		parts = append(parts, fmt.Sprintf("tos %d", r.Tos))
	}
	if r.IPProto != 0 {
		parts = append(parts, fmt.Sprintf("ipproto %d", r.IPProto))
	}
	for _, p := range []struct {
		name string
		r    *netlink.RulePortRange
	}{{"sport", r.Sport}, {"dport", r.Dport}} {
		if p.r != nil {
			parts = append(parts, fmt.Sprintf("%s %d-%d", p.name, p.r.Start, p.r.End))
		}
	}
	if r.UIDRange != nil {
		parts = append(parts, fmt.Sprintf("uidrange %d-%d", r.UIDRange.Start, r.UIDRange.End))
	}
	return strings.Join(parts, " ")
}

// counted tells whether routes of this origin are an administrator's, a DHCP
// server's or a router's. Those of routing daemons and of the kernel itself come and
// go with what they are made from.
func counted(proto int) bool {
	return slices.Contains([]int{protoBoot, protoStatic, protoRA, protoDHCP}, proto)
}

func readRoutes(h *netlink.Handle, n *change.Network, names map[int]string) error {
	tables := map[int]bool{tableMain: true}
	for _, r := range n.Rules {
		tables[r.Table] = true
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		v6 := family == netlink.FAMILY_V6
		_, err := dump(func() ([]struct{}, error) {
			n.Routes = slices.DeleteFunc(n.Routes, func(r change.NetRoute) bool { return r.IPv6 == v6 })
			// RT_FILTER_TABLE with no table named asks for all of them; one by one, for
			// a router may have a million.
			return nil, h.RouteListFilteredIter(family, &netlink.Route{}, netlink.RT_FILTER_TABLE, func(r netlink.Route) bool {
				if !tables[r.Table] || r.Type != syscall.RTN_UNICAST {
					return true
				}
				route := toRoute(r, v6, names)
				if route.Default() || counted(route.Proto) {
					n.Routes = append(n.Routes, route)
				}
				return true
			})
		})
		if errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EOPNOTSUPP) {
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func toRoute(r netlink.Route, v6 bool, names map[int]string) change.NetRoute {
	route := change.NetRoute{
		IPv6: v6, Table: r.Table, To: text(r.Dst), Proto: int(r.Protocol), Metric: r.Priority,
		Source: addrText(r.Src), Scope: int(r.Scope), Flags: r.Flags &^ (hopDead | hopLinkDown),
	}
	hop := func(gw net.IP, via netlink.Destination, index, flags int) {
		out := change.NetHop{Via: addrText(gw), Link: names[index], Dead: flags&(hopDead|hopLinkDown) != 0}
		if v, ok := via.(*netlink.Via); ok && out.Via == "" {
			out.Via = addrText(v.Addr) // an IPv4 route by a router with an IPv6 address
		}
		route.Hops = append(route.Hops, out)
	}
	for _, m := range r.MultiPath {
		hop(m.Gw, m.Via, m.LinkIndex, m.Flags)
	}
	if len(r.MultiPath) == 0 {
		hop(r.Gw, r.Via, r.LinkIndex, r.Flags)
	}
	return route
}

// The states of a neighbour, of linux/neighbour.h.
const (
	nudIncomplete = 0x01
	nudReachable  = 0x02
	nudStale      = 0x04
	nudDelay      = 0x08
	nudProbe      = 0x10
	nudFailed     = 0x20
	nudPermanent  = 0x80
)

// The states of a router, as a picture has them.
const (
	answers = "answers"
	unknown = "unknown"
	silent  = "silent"
)

func neighbourState(nud int) string {
	switch {
	case nud&(nudReachable|nudStale|nudDelay|nudPermanent) != 0:
		return answers
	case nud&(nudFailed|nudIncomplete) != 0:
		return silent
	}
	return unknown // being asked
}

// readNeighbours keeps the routers of default routes only: other neighbours come and go.
func readNeighbours(h *netlink.Handle, n *change.Network, names map[int]string) error {
	routers := map[change.NetHop]bool{}
	for _, r := range n.Routes {
		if r.Default() {
			for _, hop := range r.Hops {
				if hop.Via != "" {
					routers[change.NetHop{Via: hop.Via, Link: hop.Link}] = true
				}
			}
		}
	}
	if len(routers) == 0 {
		return nil
	}
	list, err := dump(func() ([]netlink.Neigh, error) { return h.NeighList(0, netlink.FAMILY_ALL) })
	if err != nil {
		return err
	}
	for _, e := range list {
		hop := change.NetHop{Via: addrText(e.IP), Link: names[e.LinkIndex]}
		if routers[hop] {
			n.Neighbours = append(n.Neighbours, change.NetNeighbour{IP: hop.Via, Link: hop.Link, State: neighbourState(e.State)})
		}
	}
	slices.SortFunc(n.Neighbours, func(a, b change.NetNeighbour) int {
		return cmp.Or(strings.Compare(a.Link, b.Link), strings.Compare(a.IP, b.IP))
	})
	return nil
}

// text renders a network, "" for the one that holds all addresses.
func text(n *net.IPNet) string {
	p, ok := prefix(n)
	if !ok || p.Bits() == 0 {
		return ""
	}
	return p.String()
}

func prefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}, false
	}
	bits, size := n.Mask.Size()
	if size == 32 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, bits), true
}

func addrText(ip net.IP) string {
	a, ok := netip.AddrFromSlice(ip)
	if !ok {
		return ""
	}
	return a.Unmap().String()
}

func tableName(table int) string {
	if table == tableMain {
		return ""
	}
	return " table " + strconv.Itoa(table)
}
