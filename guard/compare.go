package guard

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// passing are the kinds of links that containers, virtual machines and tunnels are
// made of. They come and go with their owners, and what is on them with
// them. One that carries a default route counts like any other.
var passing = map[string]bool{
	"veth": true, "tun": true, "tap": true, "tuntap": true, "macvlan": true, "macvtap": true, "ipvlan": true, "ipvtap": true,
	"vxlan": true, "geneve": true, "gre": true, "gretap": true, "ip6gre": true, "ip6gretap": true, "erspan": true, "ipip": true,
	"sit": true, "ip6tnl": true, "vti": true, "vti6": true, "xfrm": true, "ifb": true, "dummy": true, "nlmon": true,
	"can": true, "vcan": true, "ppp": true, "netkit": true,
}

// view is a picture with what is looked up in it.
type view struct {
	n      *change.Network
	byName map[string]*change.NetLink
	path   map[string]bool // the links that default routes go by, those below them too
}

func newView(n *change.Network) *view {
	v := &view{n: n, byName: map[string]*change.NetLink{}, path: map[string]bool{}}
	for i := range n.Links {
		v.byName[n.Links[i].Name] = &n.Links[i]
	}
	for i := range n.Routes {
		if r := &n.Routes[i]; r.Default() && v.usable(r) {
			for _, hop := range r.Hops {
				v.follow(hop.Link)
			}
		}
	}
	return v
}

// follow marks a link and those that it lies upon: a VLAN's and its like. The ports of
// a bridge or a bond are looked at by themselves.
func (v *view) follow(name string) {
	for l := v.byName[name]; l != nil && !v.path[l.Name]; l = v.byName[l.Lower] {
		v.path[l.Name] = true
	}
}

// usable tells whether a packet could leave by the route.
func (v *view) usable(r *change.NetRoute) bool {
	return slices.ContainsFunc(r.Hops, v.leads)
}

func (v *view) leads(hop change.NetHop) bool {
	l := v.byName[hop.Link]
	return l != nil && l.Up && l.Carrier && !hop.Dead
}

// comes tells whether a link is one of those that come and go.
func (v *view) comes(name string) bool {
	l := v.byName[name]
	return l == nil || passing[l.Kind] && !v.path[name]
}

// renamed finds the link that l is by now.
func (v *view) renamed(l *change.NetLink) *change.NetLink {
	if now := v.byName[l.Name]; now != nil {
		return now
	}
	for i := range v.n.Links {
		if now := &v.n.Links[i]; now.Index == l.Index && now.MAC == l.MAC && now.Kind == l.Kind {
			return now
		}
	}
	return nil
}

// item is one thing of the picture of before that counts.
type item struct {
	kind, what, link string
	// held tells what became of it: kept, changed (and how) or lost (and why).
	held func(now *view) (result, detail string)
}

// Compare tells what became of all that counts in the picture of before, in a fixed
// order. Links whose name matches a pattern of ignore (path.Match) count nothing.
func Compare(before, after *change.Network, ignore []string) []change.NetworkFinding {
	now := newView(after)
	var out []change.NetworkFinding
	for _, it := range items(before, ignore) {
		result, detail := it.held(now)
		out = append(out, change.NetworkFinding{Kind: it.kind, What: it.what, Link: it.link, Result: result, Detail: detail})
	}
	return out
}

// items lists what counts, the gravest first.
func items(before *change.Network, ignore []string) []item {
	v := newView(before)
	skip := func(link string) bool {
		return slices.ContainsFunc(ignore, func(glob string) bool { ok, _ := path.Match(glob, link); return ok })
	}
	out := slices.Concat(v.defaults(skip), v.links(skip), v.ports(skip), v.addresses(skip), v.rules(), v.routes(skip), v.routers(skip))
	seen := map[string]bool{}
	return slices.DeleteFunc(out, func(it item) bool {
		key := it.kind + "\x00" + it.what
		was := seen[key]
		seen[key] = true
		return was
	})
}

func kept() (string, string) { return change.NetKept, "" }

func lost(format string, args ...any) (string, string) {
	return change.NetLost, fmt.Sprintf(format, args...)
}

func changed(format string, args ...any) (string, string) {
	return change.NetChanged, fmt.Sprintf(format, args...)
}

func hopText(hops []change.NetHop) string {
	var parts []string
	for _, h := range hops {
		if h.Via == "" {
			parts = append(parts, "dev "+h.Link)
		} else {
			parts = append(parts, "via "+h.Via+" dev "+h.Link)
		}
	}
	return strings.Join(parts, " and ")
}

// place names a table in a family.
type place struct {
	ipv6  bool
	table int
}

func sameHop(a, b []change.NetHop) bool {
	return slices.ContainsFunc(a, func(x change.NetHop) bool {
		return slices.ContainsFunc(b, func(y change.NetHop) bool { return x.Via == y.Via && x.Link == y.Link })
	})
}

// best are the routes to one destination that can be used, the preferred first.
func (v *view) best(where place, to string) []*change.NetRoute {
	var out []*change.NetRoute
	for i := range v.n.Routes {
		if r := &v.n.Routes[i]; r.IPv6 == where.ipv6 && r.Table == where.table && r.To == to && v.usable(r) {
			out = append(out, r)
		}
	}
	slices.SortStableFunc(out, func(a, b *change.NetRoute) int {
		return cmp.Or(cmp.Compare(a.Metric, b.Metric), strings.Compare(hopText(a.Hops), hopText(b.Hops)))
	})
	return out
}

// stands tells what became of a destination: any usable route to it will do.
func (v *view) stands(where place, was *change.NetRoute) (string, string) {
	list := v.best(where, was.To)
	for _, r := range list {
		if sameHop(r.Hops, was.Hops) {
			return kept()
		}
	}
	if len(list) > 0 {
		return changed("it leads %s now", hopText(list[0].Hops))
	}
	for i := range v.n.Routes {
		if r := &v.n.Routes[i]; r.IPv6 == where.ipv6 && r.Table == where.table && r.To == was.To {
			return lost("no link that it leads to can be used")
		}
	}
	return lost("")
}

// defaults are the default routes, one for each table and family.
func (v *view) defaults(skip func(string) bool) []item {
	var out []item
	for _, where := range v.places() {
		list := v.best(where, "")
		if len(list) == 0 || skip(list[0].Hops[0].Link) {
			continue
		}
		was := list[0]
		out = append(out, item{
			"default-route", "default route " + hopText(was.Hops) + tableName(where.table), was.Hops[0].Link,
			func(now *view) (string, string) { return now.stands(where, was) },
		})
	}
	return out
}

func (v *view) places() []place {
	var out []place
	for _, r := range v.n.Routes {
		if p := (place{r.IPv6, r.Table}); !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b place) int {
		if a.table == tableMain || b.table == tableMain {
			if a.table != b.table {
				return cmp.Compare(b.table, a.table)
			}
		}
		return cmp.Or(cmp.Compare(a.table, b.table), strings.Compare(fmt.Sprint(a.ipv6), fmt.Sprint(b.ipv6)))
	})
	return out
}

// routes are the other routes that somebody asked for.
func (v *view) routes(skip func(string) bool) []item {
	var out []item
	for i := range v.n.Routes {
		was := &v.n.Routes[i]
		where := place{was.IPv6, was.Table}
		if was.Default() || was.Proto == protoRA || !v.usable(was) ||
			slices.ContainsFunc(was.Hops, func(h change.NetHop) bool { return v.comes(h.Link) || skip(h.Link) }) {
			continue
		}
		out = append(out, item{
			"route", "route " + was.To + " " + hopText(was.Hops) + tableName(where.table), was.Hops[0].Link,
			func(now *view) (string, string) { return now.stands(where, was) },
		})
	}
	sortItems(out)
	return out
}

func sortItems(list []item) {
	slices.SortStableFunc(list, func(a, b item) int { return strings.Compare(a.what, b.what) })
}

// links are those that can be used now: by default routes, and by addresses that do not
// come and go.
func (v *view) links(skip func(string) bool) []item {
	addressed := map[string]bool{}
	for _, a := range v.n.Addresses {
		addressed[a.Link] = true
	}
	var out []item
	for i := range v.n.Links {
		was := &v.n.Links[i]
		onPath := v.path[was.Name]
		if !was.Up || skip(was.Name) || !onPath && (!addressed[was.Name] || v.comes(was.Name)) {
			continue
		}
		// A bridge for containers alone has a carrier while one of them runs.
		cable := was.Carrier && (onPath || was.Kind != "bridge")
		out = append(out, item{"link", "link " + was.Name, was.Name, func(now *view) (string, string) {
			l := now.renamed(was)
			switch {
			case l == nil && len(now.onOther(v, was)) > 0:
				return changed("what it carried is on %s now", now.onOther(v, was))
			case l == nil:
				return lost("it is gone")
			case !l.Up:
				return lost("it was taken down")
			case cable && !l.Carrier:
				return lost("it has no carrier")
			case l.Name != was.Name:
				return changed("it is called %s now", l.Name)
			}
			return kept()
		}})
	}
	sortItems(out)
	return out
}

// onOther names the link that has all the addresses which link had in the picture
// old; "" where there is none, or where it had none.
func (v *view) onOther(old *view, link *change.NetLink) string {
	other := ""
	for _, a := range old.n.Addresses {
		if a.Link != link.Name {
			continue
		}
		i := slices.IndexFunc(v.n.Addresses, func(b change.NetAddress) bool { return b.Prefix == a.Prefix })
		if i < 0 {
			return ""
		}
		other = v.n.Addresses[i].Link
	}
	return other
}

// ports are the members of bridges, bonds and VRFs. One of those that come and go may
// be gone; one that is still there must be where it was.
func (v *view) ports(skip func(string) bool) []item {
	var out []item
	for i := range v.n.Links {
		was := &v.n.Links[i]
		if was.Master == "" || skip(was.Name) || skip(was.Master) {
			continue
		}
		carries := was.Up && was.Carrier && v.path[was.Master] && !passing[was.Kind]
		out = append(out, item{"port", was.Name + " as a port of " + was.Master, was.Name, func(now *view) (string, string) {
			l := now.renamed(was)
			switch {
			case l == nil && passing[was.Kind]:
				return kept()
			case l == nil:
				return lost("the link is gone")
			case l.Master == "":
				return lost("")
			case l.Master != was.Master:
				return lost("it is a port of %s now", l.Master)
			case carries && !l.Up:
				return lost("it was taken down")
			case carries && !l.Carrier:
				return lost("it has no carrier")
			}
			return kept()
		}})
	}
	sortItems(out)
	return out
}

// addresses are those of links that do not come and go.
func (v *view) addresses(skip func(string) bool) []item {
	var out []item
	for i := range v.n.Addresses {
		was := &v.n.Addresses[i]
		if v.comes(was.Link) || skip(was.Link) {
			continue
		}
		ip := addrOf(was.Prefix)
		out = append(out, item{"address", was.Prefix + " on " + was.Link, was.Link, func(now *view) (string, string) {
			var instead string
			for j := range now.n.Addresses {
				a := &now.n.Addresses[j]
				switch {
				case addrOf(a.Prefix) == ip && a.Link == was.Link:
					return kept()
				case addrOf(a.Prefix) == ip:
					instead = "it is on " + a.Link + " now"
				case a.Link == was.Link && a.IPv6() == was.IPv6() && was.Dynamic && !v.has(a.Prefix) && instead == "":
					instead = a.Prefix + " took its place"
				}
			}
			switch {
			case instead != "":
				return changed("%s", instead)
			case v.shared(was) && now.speaks(was):
				return changed("it is gone; it may be one that several machines share")
			}
			return lost("")
		}})
	}
	sortItems(out)
	return out
}

// shared tells whether an address may be one that moves between machines (VRRP, a
// failover address): it stands for itself beside another one.
func (v *view) shared(a *change.NetAddress) bool {
	if !strings.HasSuffix(a.Prefix, "/32") && !strings.HasSuffix(a.Prefix, "/128") {
		return false
	}
	return slices.ContainsFunc(v.n.Addresses, func(b change.NetAddress) bool {
		return b.Link == a.Link && b.IPv6() == a.IPv6() && !strings.HasSuffix(b.Prefix, "/32") && !strings.HasSuffix(b.Prefix, "/128")
	})
}

// speaks tells whether the link of an address has another one of its family.
func (v *view) speaks(a *change.NetAddress) bool {
	return slices.ContainsFunc(v.n.Addresses, func(b change.NetAddress) bool { return b.Link == a.Link && b.IPv6() == a.IPv6() })
}

func (v *view) has(prefix string) bool {
	return slices.ContainsFunc(v.n.Addresses, func(a change.NetAddress) bool { return addrOf(a.Prefix) == addrOf(prefix) })
}

func addrOf(prefix string) string {
	ip, _, _ := strings.Cut(prefix, "/")
	return ip
}

// ruleText names a rule by all but its priority, which tools choose anew.
func ruleText(r change.NetRule) string {
	var b strings.Builder
	b.WriteString("rule from " + cmp.Or(r.From, "all"))
	if r.Invert {
		b.Reset()
		b.WriteString("rule not from " + cmp.Or(r.From, "all"))
	}
	for _, p := range []struct{ name, value string }{{"to", r.To}, {"iif", r.In}, {"oif", r.Out}} {
		if p.value != "" {
			b.WriteString(" " + p.name + " " + p.value)
		}
	}
	if r.Mark != 0 {
		fmt.Fprintf(&b, " fwmark %#x/%#x", r.Mark, r.Mask)
	}
	if r.Suppress >= 0 {
		fmt.Fprintf(&b, " suppress_prefixlength %d", r.Suppress)
	}
	if r.More != "" {
		b.WriteString(" " + r.More)
	}
	table := fmt.Sprint(r.Table)
	if r.Table == tableMain {
		table = "main"
	}
	b.WriteString(" lookup " + table)
	if r.IPv6 {
		b.WriteString(" (IPv6)")
	}
	return b.String()
}

// rules are those that lead to a table with a default route.
func (v *view) rules() []item {
	var out []item
	for _, was := range v.n.Rules {
		if len(v.best(place{was.IPv6, was.Table}, "")) == 0 {
			continue
		}
		text := ruleText(was)
		out = append(out, item{"rule", text, "", func(now *view) (string, string) {
			if slices.ContainsFunc(now.n.Rules, func(r change.NetRule) bool { return ruleText(r) == text }) {
				return kept()
			}
			return lost("")
		}})
	}
	sortItems(out)
	return out
}

// routers are those of the preferred default routes that answered.
func (v *view) routers(skip func(string) bool) []item {
	var out []item
	for _, where := range v.places() {
		list := v.best(where, "")
		if len(list) == 0 {
			continue
		}
		for _, hop := range list[0].Hops {
			i := slices.IndexFunc(v.n.Neighbours, func(n change.NetNeighbour) bool { return n.IP == hop.Via && n.Link == hop.Link })
			if i < 0 || v.n.Neighbours[i].State != answers || skip(hop.Link) {
				continue
			}
			out = append(out, item{"neighbour", "router " + hop.Via + " on " + hop.Link, hop.Link, func(now *view) (string, string) {
				return now.router(where, hop)
			}})
		}
	}
	return out
}

// router tells whether the one behind a hop can still be spoken to, where it is still needed.
func (v *view) router(where place, hop change.NetHop) (string, string) {
	for _, r := range v.best(where, "") {
		if !sameHop(r.Hops, []change.NetHop{hop}) {
			continue
		}
		for _, n := range v.n.Neighbours {
			if n.IP == hop.Via && n.Link == hop.Link && n.State == silent {
				return lost("it does not answer")
			}
		}
		return kept()
	}
	return changed("no default route leads to it now")
}
