package guard

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
)

// server is a machine with a bridge over a VLAN of a bond, an uplink of its own, a
// second routing table, a container and a tunnel.
func server() *change.Network {
	return &change.Network{
		Links: []change.NetLink{
			{Index: 1, Name: "lo", Kind: "device", Up: true, Carrier: true},
			{Index: 2, Name: "eth0", Kind: "device", MAC: "02:00:00:00:00:02", Up: true, Carrier: true},
			{Index: 3, Name: "eth1", Kind: "device", MAC: "02:00:00:00:00:03", Master: "bond0", Up: true, Carrier: true},
			{Index: 4, Name: "eth2", Kind: "device", MAC: "02:00:00:00:00:04", Master: "bond0", Up: true, Carrier: true},
			{Index: 5, Name: "bond0", Kind: "bond", Up: true, Carrier: true},
			{Index: 6, Name: "bond0.7", Kind: "vlan", Lower: "bond0", Master: "br7", Up: true, Carrier: true},
			{Index: 7, Name: "br7", Kind: "bridge", Up: true, Carrier: true},
			{Index: 8, Name: "docker0", Kind: "bridge", Up: true, Carrier: true},
			{Index: 9, Name: "veth1", Kind: "veth", Master: "docker0", Up: true, Carrier: true},
			{Index: 10, Name: "tun0", Kind: "tun", Up: true, Carrier: true},
			{Index: 11, Name: "eth9", Kind: "device"},
		},
		Addresses: []change.NetAddress{
			{Prefix: "127.0.0.1/8", Link: "lo", Scope: 254},
			{Prefix: "10.0.0.2/24", Link: "eth0", Dynamic: true, ValidSec: 3600},
			{Prefix: "10.0.0.99/32", Link: "eth0"},
			{Prefix: "2001:db8::2/64", Link: "eth0", Dynamic: true, ValidSec: 86400},
			{Prefix: "10.7.0.2/24", Link: "br7"},
			{Prefix: "172.17.0.1/16", Link: "docker0"},
			{Prefix: "10.8.0.1/24", Link: "tun0"},
		},
		Routes: []change.NetRoute{
			{Table: tableMain, Hops: []change.NetHop{{Via: "10.0.0.1", Link: "eth0"}}, Proto: protoDHCP, Metric: 100},
			{Table: tableMain, Hops: []change.NetHop{{Via: "10.7.0.1", Link: "br7"}}, Proto: protoStatic, Metric: 200},
			{IPv6: true, Table: tableMain, Hops: []change.NetHop{{Via: "fe80::1", Link: "eth0"}}, Proto: protoRA, Metric: 1024},
			{Table: 7, Hops: []change.NetHop{{Via: "10.7.0.1", Link: "br7"}}, Proto: protoStatic},
			{Table: tableMain, To: "192.168.0.0/16", Hops: []change.NetHop{{Via: "10.7.0.254", Link: "br7"}}, Proto: protoStatic},
			{Table: tableMain, To: "10.9.0.0/16", Hops: []change.NetHop{{Via: "10.8.0.2", Link: "tun0"}}, Proto: protoBoot},
		},
		Rules: []change.NetRule{
			{Priority: 32766, Table: tableMain, Suppress: -1},
			{Priority: 1000, Table: 7, From: "10.7.0.2/32", Suppress: -1},
			{Priority: 32767, Table: 253, Suppress: -1},
			{IPv6: true, Priority: 32766, Table: tableMain, Suppress: -1},
		},
		Neighbours: []change.NetNeighbour{
			{IP: "10.0.0.1", Link: "eth0", State: answers},
			{IP: "10.7.0.1", Link: "br7", State: answers},
			{IP: "fe80::1", Link: "eth0", State: answers},
		},
	}
}

// edits of a picture, by name.
func dropLink(name string) func(*change.Network) {
	return func(n *change.Network) {
		n.Links = slices.DeleteFunc(n.Links, func(l change.NetLink) bool { return l.Name == name })
		n.Addresses = slices.DeleteFunc(n.Addresses, func(a change.NetAddress) bool { return a.Link == name })
		n.Routes = slices.DeleteFunc(n.Routes, func(r change.NetRoute) bool { return r.Hops[0].Link == name })
	}
}

func onLink(name string, edit func(*change.NetLink)) func(*change.Network) {
	return func(n *change.Network) {
		for i := range n.Links {
			if n.Links[i].Name == name {
				edit(&n.Links[i])
			}
		}
	}
}

func dropAddress(prefix string) func(*change.Network) {
	return func(n *change.Network) {
		n.Addresses = slices.DeleteFunc(n.Addresses, func(a change.NetAddress) bool { return a.Prefix == prefix })
	}
}

func dropRoute(match func(r change.NetRoute) bool) func(*change.Network) {
	return func(n *change.Network) { n.Routes = slices.DeleteFunc(n.Routes, match) }
}

func both(edits ...func(*change.Network)) func(*change.Network) {
	return func(n *change.Network) {
		for _, edit := range edits {
			edit(n)
		}
	}
}

func down(l *change.NetLink)   { l.Up, l.Carrier = false, false }
func unplug(l *change.NetLink) { l.Carrier = false }

func TestCompare(t *testing.T) {
	byEth0 := func(r change.NetRoute) bool { return r.Hops[0].Link == "eth0" && r.Default() && !r.IPv6 }
	tests := []struct {
		name    string
		edit    func(*change.Network)
		lost    []string
		changed []string
	}{
		{"nothing", func(*change.Network) {}, nil, nil},
		{"a renewed lease", func(n *change.Network) { n.Addresses[1].ValidSec = 7200; n.Addresses[3].ValidSec = 5 }, nil, nil},
		{"a route of another origin", func(n *change.Network) { n.Routes[0].Proto, n.Routes[0].Metric = protoStatic, 0 }, nil, nil},
		{
			"the preferred default route, where another one is left", dropRoute(byEth0), nil,
			[]string{"default route via 10.0.0.1 dev eth0", "router 10.0.0.1 on eth0"},
		},
		{
			"both default routes", dropRoute(func(r change.NetRoute) bool { return r.Default() && !r.IPv6 && r.Table == tableMain }),
			[]string{"default route via 10.0.0.1 dev eth0"},
			[]string{"router 10.0.0.1 on eth0"},
		},
		{
			"the default route of IPv6", dropRoute(func(r change.NetRoute) bool { return r.IPv6 }),
			[]string{"default route via fe80::1 dev eth0"},
			[]string{"router fe80::1 on eth0"},
		},
		{
			"the default route of a table", dropRoute(func(r change.NetRoute) bool { return r.Table == 7 }),
			[]string{"default route via 10.7.0.1 dev br7 table 7"},
			[]string{"router 10.7.0.1 on br7"},
		},
		{
			"a rule that leads to a default route", func(n *change.Network) { n.Rules = slices.Delete(n.Rules, 1, 2) },
			[]string{"rule from 10.7.0.2/32 lookup 7"},
			nil,
		},
		{"a rule with another priority", func(n *change.Network) { n.Rules[1].Priority = 5 }, nil, nil},
		{"a rule that leads nowhere", func(n *change.Network) { n.Rules = slices.Delete(n.Rules, 2, 3) }, nil, nil},
		{
			"another router", func(n *change.Network) { n.Routes[0].Hops[0].Via = "10.0.0.254" }, nil,
			[]string{"default route via 10.0.0.1 dev eth0", "router 10.0.0.1 on eth0"},
		},
		{"a router that does not answer", func(n *change.Network) { n.Neighbours[0].State = silent }, []string{"router 10.0.0.1 on eth0"}, nil},
		{"a router that is being asked", func(n *change.Network) { n.Neighbours[0].State = unknown }, nil, nil},
		{"a router nobody has spoken to since", func(n *change.Network) { n.Neighbours = nil }, nil, nil},
		{
			"a link that is down", onLink("eth0", down),
			[]string{"default route via fe80::1 dev eth0", "link eth0"},
			[]string{"default route via 10.0.0.1 dev eth0", "router 10.0.0.1 on eth0", "router fe80::1 on eth0"},
		},
		{
			"a link without a carrier", onLink("eth0", unplug),
			[]string{"default route via fe80::1 dev eth0", "link eth0"},
			[]string{"default route via 10.0.0.1 dev eth0", "router 10.0.0.1 on eth0", "router fe80::1 on eth0"},
		},
		{"a link that was down before", dropLink("eth9"), nil, nil},
		{"a port of a bond", onLink("eth1", func(l *change.NetLink) { l.Master = "" }), []string{"eth1 as a port of bond0"}, nil},
		{"a port in another bridge", onLink("bond0.7", func(l *change.NetLink) { l.Master = "docker0" }), []string{"bond0.7 as a port of br7"}, nil},
		{"a VLAN that is gone", dropLink("bond0.7"), []string{"bond0.7 as a port of br7"}, nil},
		{"a container that ended", dropLink("veth1"), nil, nil},
		{"a container's bridge without a carrier", both(dropLink("veth1"), onLink("docker0", unplug)), nil, nil},
		{"a container's end that is there and left its bridge", onLink("veth1", func(l *change.NetLink) { l.Master = "" }), []string{"veth1 as a port of docker0"}, nil},
		{"a tunnel that ended", dropLink("tun0"), nil, nil},
		{"a static address", dropAddress("10.7.0.2/24"), []string{"10.7.0.2/24 on br7"}, nil},
		{"an address of DHCP", dropAddress("10.0.0.2/24"), []string{"10.0.0.2/24 on eth0"}, nil},
		{
			"another address of DHCP", func(n *change.Network) { n.Addresses[1].Prefix = "10.0.0.77/24" }, nil, []string{"10.0.0.2/24 on eth0"},
		},
		{
			"a static address in the place of another", func(n *change.Network) { n.Addresses[4].Prefix = "10.7.0.77/24" }, []string{"10.7.0.2/24 on br7"}, nil,
		},
		{"an address with another length", func(n *change.Network) { n.Addresses[4].Prefix = "10.7.0.2/16" }, nil, nil},
		{"an address that several machines share", dropAddress("10.0.0.99/32"), nil, []string{"10.0.0.99/32 on eth0"}},
		{"an address on another link", func(n *change.Network) { n.Addresses[4].Link = "eth1" }, nil, []string{"10.7.0.2/24 on br7"}},
		{"a route", dropRoute(func(r change.NetRoute) bool { return r.To == "192.168.0.0/16" }), []string{"route 192.168.0.0/16 via 10.7.0.254 dev br7"}, nil},
		{"a route of a tunnel", dropRoute(func(r change.NetRoute) bool { return r.To == "10.9.0.0/16" }), nil, nil},
		{
			"a route that leads elsewhere", func(n *change.Network) { n.Routes[4].Hops[0].Via = "10.7.0.253" }, nil, []string{"route 192.168.0.0/16 via 10.7.0.254 dev br7"},
		},
		{"a link with another name", func(n *change.Network) {
			onLink("eth0", func(l *change.NetLink) { l.Name = "lan0" })(n)
			for i := range n.Addresses {
				n.Addresses[i].Link = strings.Replace(n.Addresses[i].Link, "eth0", "lan0", 1)
			}
			for i := range n.Routes {
				n.Routes[i].Hops[0].Link = strings.Replace(n.Routes[i].Hops[0].Link, "eth0", "lan0", 1)
			}
		}, nil, []string{
			"default route via 10.0.0.1 dev eth0", "default route via fe80::1 dev eth0", "link eth0", "10.0.0.2/24 on eth0", "10.0.0.99/32 on eth0",
			"2001:db8::2/64 on eth0", "router 10.0.0.1 on eth0", "router fe80::1 on eth0",
		}},
		{"loopback is down", onLink("lo", down), []string{"link lo"}, nil},
		{"a default route whose hop is dead", func(n *change.Network) { n.Routes[2].Hops[0].Dead = true }, []string{"default route via fe80::1 dev eth0"}, []string{"router fe80::1 on eth0"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			after := server()
			tt.edit(after)
			lost, changed := results(Compare(server(), after, nil))
			slices.Sort(tt.lost)
			slices.Sort(tt.changed)
			if diff := cmp.Diff(tt.lost, lost); diff != "" {
				t.Errorf("lost (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.changed, changed); diff != "" {
				t.Errorf("changed (-want +got):\n%s", diff)
			}
		})
	}
}

func results(list []change.NetworkFinding) (lost, changed []string) {
	for _, f := range list {
		switch f.Result {
		case change.NetLost:
			lost = append(lost, f.What)
		case change.NetChanged:
			changed = append(changed, f.What)
		}
	}
	slices.Sort(lost)
	slices.Sort(changed)
	return lost, changed
}

func TestCompareIgnores(t *testing.T) {
	after := server()
	onLink("eth0", down)(after)
	lost, _ := results(Compare(server(), after, []string{"eth*"}))
	if len(lost) > 0 {
		t.Errorf("ignored links are lost: %v", lost)
	}
}

func seed(t *testing.T) *rand.Rand {
	n, err := strconv.ParseUint(os.Getenv("LIVEUPD_SEED"), 10, 64)
	if err != nil {
		n = uint64(time.Now().UnixNano())
	}
	t.Logf("LIVEUPD_SEED=%d", n)
	return rand.New(rand.NewPCG(n, 7))
}

func shuffle[T any](r *rand.Rand, list []T) {
	r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
}

// In whatever order the kernel lists things, whatever comes in addition and whatever a
// container's links do, the verdict is the same.
func TestCompareOrderAndNoise(t *testing.T) {
	r := seed(t)
	losses := []func(*change.Network){
		func(*change.Network) {},
		onLink("eth0", down), onLink("br7", unplug), onLink("eth1", func(l *change.NetLink) { l.Master = "" }),
		dropAddress("10.7.0.2/24"), dropAddress("10.0.0.2/24"), dropLink("bond0.7"),
		dropRoute(func(r change.NetRoute) bool { return r.Default() }),
		dropRoute(func(r change.NetRoute) bool { return r.To == "192.168.0.0/16" }),
		func(n *change.Network) { n.Neighbours[0].State = silent },
	}
	const rounds = 3000
	for range rounds {
		plain := server()
		for _, i := range r.Perm(len(losses))[:r.IntN(4)] {
			losses[i](plain)
		}
		want := Compare(server(), plain, nil)
		before, after := server(), clone(plain)
		noise(r, before, "old")
		noise(r, after, "new")
		if r.IntN(2) == 0 {
			dropLink("veth1")(after)
		}
		if r.IntN(2) == 0 {
			dropLink("tun0")(after)
		}
		for _, n := range []*change.Network{before, after} {
			shuffle(r, n.Links)
			shuffle(r, n.Addresses)
			shuffle(r, n.Routes)
			shuffle(r, n.Rules)
			shuffle(r, n.Neighbours)
		}
		got := Compare(before, after, nil)
		got = slices.DeleteFunc(got, func(f change.NetworkFinding) bool { return strings.Contains(f.What, "veth") })
		want = slices.DeleteFunc(want, func(f change.NetworkFinding) bool { return strings.Contains(f.What, "veth") })
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("(-in order +shuffled with noise):\n%s", diff)
		}
	}
	t.Logf("%d pictures tried", rounds)
}

func clone(n *change.Network) *change.Network {
	c := *n
	c.Links, c.Addresses, c.Routes = slices.Clone(n.Links), slices.Clone(n.Addresses), slices.Clone(n.Routes)
	c.Rules, c.Neighbours = slices.Clone(n.Rules), slices.Clone(n.Neighbours)
	return &c
}

// noise is what comes and goes on a machine with containers.
func noise(r *rand.Rand, n *change.Network, when string) {
	for i := range r.IntN(4) {
		name := fmt.Sprintf("veth%s%d", when, i)
		n.Links = append(n.Links, change.NetLink{Index: 100 + i, Name: name, Kind: "veth", Master: []string{"", "docker0", "br7"}[r.IntN(3)], Up: true, Carrier: r.IntN(2) == 0})
		if r.IntN(2) == 0 {
			n.Addresses = append(n.Addresses, change.NetAddress{Prefix: fmt.Sprintf("10.200.%d.1/24", i), Link: name})
			n.Routes = append(n.Routes, change.NetRoute{Table: tableMain, To: fmt.Sprintf("10.20%d.0.0/24", i), Hops: []change.NetHop{{Link: name}}, Proto: protoBoot})
		}
	}
	for i := range n.Addresses {
		if n.Addresses[i].Dynamic {
			n.Addresses[i].ValidSec = r.IntN(10000)
		}
	}
	if r.IntN(2) == 0 {
		n.Rules = append(n.Rules, change.NetRule{Priority: r.IntN(1000), Table: 99, Mark: 5, Mask: 255, Suppress: -1})
	}
}
