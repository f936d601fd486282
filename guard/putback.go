package guard

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"

	"github.com/liveupd/liveupd/change"
)

// PutBack makes again of the picture of before what is missing of it: links are set up
// and are put into their bridges, addresses, routes and rules are added. What is there is
// left alone, and nothing is removed. It is the last resort: whoever is in charge of
// the network does not know of it.
func PutBack(before *change.Network, missing []change.NetworkFinding) error {
	now, err := Take()
	if err != nil {
		return err
	}
	v := newView(before)
	wanted := map[string]bool{}
	for _, f := range missing {
		v.below(f.Link, wanted)
	}
	var errs []error
	try := func(what string, err error) {
		if err != nil && !errors.Is(err, syscall.EEXIST) {
			errs = append(errs, fmt.Errorf("cannot put %s back: %w", what, err))
		}
	}
	current := newView(now)
	for _, l := range before.Links {
		is := current.byName[l.Name]
		if !wanted[l.Name] || is == nil {
			continue
		}
		link, err := netlink.LinkByName(l.Name)
		if err != nil {
			continue
		}
		if l.Master != "" && is.Master != l.Master {
			if master, err := netlink.LinkByName(l.Master); err == nil {
				try(l.Name+" as a port of "+l.Master, netlink.LinkSetMaster(link, master))
			}
		}
		if l.Up && !is.Up {
			try("link "+l.Name, netlink.LinkSetUp(link))
		}
	}
	for _, a := range before.Addresses {
		if wanted[a.Link] && !slices.ContainsFunc(now.Addresses, func(b change.NetAddress) bool { return b.Prefix == a.Prefix && b.Link == a.Link }) {
			try(a.Prefix+" on "+a.Link, addAddress(a))
		}
	}
	// Routes after the addresses that they need; those on the link before those by a router.
	for _, routed := range []bool{false, true} {
		for i := range before.Routes {
			r := &before.Routes[i]
			if routed != slices.ContainsFunc(r.Hops, func(h change.NetHop) bool { return h.Via != "" }) {
				continue
			}
			if len(r.Hops) > 0 && wanted[r.Hops[0].Link] && len(current.best(place{r.IPv6, r.Table}, r.To)) == 0 {
				try("route "+text0(r.To)+" "+hopText(r.Hops), addRoute(r))
			}
		}
	}
	for _, f := range missing {
		for _, r := range before.Rules {
			if f.Kind == "rule" && f.What == ruleText(r) && r.More == "" {
				try(f.What, addRule(r))
			}
		}
	}
	return errors.Join(errs...)
}

// below adds a link with what it lies upon, its master and its ports.
func (v *view) below(name string, out map[string]bool) {
	if name == "" || out[name] {
		return
	}
	out[name] = true
	l := v.byName[name]
	if l == nil {
		return
	}
	v.below(l.Lower, out)
	v.below(l.Master, out)
	for _, port := range v.n.Links {
		if port.Master == name && !passing[port.Kind] {
			v.below(port.Name, out)
		}
	}
}

func text0(to string) string {
	if to == "" {
		return "default"
	}
	return to
}

func addAddress(a change.NetAddress) error {
	link, err := netlink.LinkByName(a.Link)
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(a.Prefix)
	if err != nil {
		return err
	}
	addr.Scope = a.Scope
	if a.Dynamic {
		// Nobody renews it but the client that gave it up: its time goes on.
		addr.ValidLft, addr.PreferedLft = a.ValidSec, a.ValidSec
	}
	return netlink.AddrReplace(link, addr)
}

func addRoute(r *change.NetRoute) error {
	route := &netlink.Route{
		Table: r.Table, Priority: r.Metric, Protocol: netlink.RouteProtocol(r.Proto), Scope: netlink.Scope(r.Scope),
		Src: net.ParseIP(r.Source), Flags: r.Flags, Type: syscall.RTN_UNICAST, Family: netlink.FAMILY_V4,
	}
	everything := "0.0.0.0/0"
	if r.IPv6 {
		route.Family, everything = netlink.FAMILY_V6, "::/0"
	}
	to := r.To
	if to == "" {
		to = everything
	}
	var err error
	if _, route.Dst, err = net.ParseCIDR(to); err != nil {
		return err
	}
	for _, h := range r.Hops {
		link, err := netlink.LinkByName(h.Link)
		if err != nil {
			return err
		}
		hop := &netlink.NexthopInfo{LinkIndex: link.Attrs().Index}
		if ip := net.ParseIP(h.Via); ip != nil && !r.IPv6 && strings.Contains(h.Via, ":") {
			hop.Via = &netlink.Via{AddrFamily: netlink.FAMILY_V6, Addr: ip}
		} else {
			hop.Gw = ip
		}
		route.MultiPath = append(route.MultiPath, hop)
	}
	if len(route.MultiPath) == 1 {
		hop := route.MultiPath[0]
		route.LinkIndex, route.Gw, route.Via, route.MultiPath = hop.LinkIndex, hop.Gw, nil, nil
		if hop.Via != nil {
			route.Via = hop.Via
		}
	}
	return netlink.RouteReplace(route)
}

func addRule(r change.NetRule) error {
	rule := netlink.NewRule()
	rule.Family = netlink.FAMILY_V4
	if r.IPv6 {
		rule.Family = netlink.FAMILY_V6
	}
	rule.Priority, rule.Table, rule.IifName, rule.OifName = r.Priority, r.Table, r.In, r.Out
	rule.Mark, rule.Invert, rule.SuppressPrefixlen = r.Mark, r.Invert, r.Suppress
	if r.Mark != 0 {
		mask := r.Mask
		rule.Mask = &mask
	}
	for _, p := range []struct {
		text string
		into **net.IPNet
	}{{r.From, &rule.Src}, {r.To, &rule.Dst}} {
		if p.text != "" {
			_, n, err := net.ParseCIDR(p.text)
			if err != nil {
				return err
			}
			*p.into = n
		}
	}
	return netlink.RuleAdd(rule)
}
