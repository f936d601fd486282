package change

import "strings"

// Network is what a machine is reached by, at one moment. It holds what an update
// could take away; addresses of link scope, temporary ones, multicast and the
// routes of routing daemons are left out.
type Network struct {
	Links      []NetLink      `json:"links"`
	Addresses  []NetAddress   `json:"addresses"`
	Routes     []NetRoute     `json:"routes"`
	Rules      []NetRule      `json:"rules"`
	Neighbours []NetNeighbour `json:"neighbours"`
}

// NetLink is a network interface.
type NetLink struct {
	Index   int    `json:"index"`
	Name    string `json:"name"`
	Kind    string `json:"kind"` // as ip-link(8) has it: device, bridge, bond, vlan, veth, ...
	MAC     string `json:"mac,omitempty"`
	Master  string `json:"master,omitempty"` // the bridge, bond or VRF that it belongs to
	Lower   string `json:"lower,omitempty"`  // what a VLAN or its like lies upon
	Up      bool   `json:"up"`               // the administrator's
	Carrier bool   `json:"carrier"`          // the cable's
}

// NetAddress is an address of a link.
type NetAddress struct {
	Prefix   string `json:"prefix"` // "10.0.0.2/24"
	Link     string `json:"link"`
	Dynamic  bool   `json:"dynamic,omitempty"`   // it has a lifetime: DHCP, router advertisements
	ValidSec int    `json:"valid_sec,omitempty"` // what was left of it
	Scope    int    `json:"scope,omitempty"`     // as rtnetlink(7) has it; 0 is global
}

// NetHop is where a route leads.
type NetHop struct {
	Via  string `json:"via,omitempty"` // "" where the destination is on the link itself
	Link string `json:"link"`
	Dead bool   `json:"dead,omitempty"` // the kernel does not use it: its link is down
}

// NetRoute is a unicast route.
type NetRoute struct {
	IPv6   bool     `json:"ipv6,omitempty"`
	Table  int      `json:"table"`        // 254 is main
	To     string   `json:"to,omitempty"` // "" for a default route
	Hops   []NetHop `json:"hops"`
	Proto  int      `json:"proto"` // who made it, as rtnetlink(7) has it
	Metric int      `json:"metric,omitempty"`
	Source string   `json:"source,omitempty"` // the address to speak from
	Scope  int      `json:"scope,omitempty"`
	Flags  int      `json:"flags,omitempty"`
}

// Default tells whether the route is for everything that no other is for.
func (r *NetRoute) Default() bool { return r.To == "" }

// IPv6 tells of which family an address is.
func (a *NetAddress) IPv6() bool { return strings.Contains(a.Prefix, ":") }

// NetRule is a rule of policy routing that leads to a table.
type NetRule struct {
	IPv6     bool   `json:"ipv6,omitempty"`
	Priority int    `json:"priority"`
	Table    int    `json:"table"`
	From     string `json:"from,omitempty"` // "" for all
	To       string `json:"to,omitempty"`
	In       string `json:"in,omitempty"` // the link that a packet came from
	Out      string `json:"out,omitempty"`
	Mark     uint32 `json:"mark,omitempty"`
	Mask     uint32 `json:"mask,omitempty"`
	Invert   bool   `json:"invert,omitempty"`
	Suppress int    `json:"suppress,omitempty"` // prefixes of up to so many bits are passed over; -1: none
	More     string `json:"more,omitempty"`     // what else it asks for, in words
}

// NetNeighbour is what is known of a router's address on its link.
type NetNeighbour struct {
	IP    string `json:"ip"`
	Link  string `json:"link"`
	State string `json:"state"` // answers, unknown, silent
}

// The results of a NetworkFinding.
const (
	NetKept     = "kept"     // as it was before
	NetChanged  = "changed"  // another one took its place: told, and no reason to roll back
	NetBack     = "back"     // it was lost for a while and came back by itself
	NetLost     = "lost"     // it is gone
	NetRestored = "restored" // it was lost, and came back with the rollback
	NetPutBack  = "put-back" // it was lost, and was put back from the picture of before
)

// NetworkFinding is what became of one thing that a machine is reached by.
type NetworkFinding struct {
	Kind   string `json:"kind"` // default-route, route, rule, link, port, address, neighbour
	What   string `json:"what"` // "default route via 10.0.0.1 dev eth0"
	Link   string `json:"link,omitempty"`
	Result string `json:"result"`
	After  string `json:"after,omitempty"` // the step it was lost after: "restart of systemd-networkd.service"
	Detail string `json:"detail,omitempty"`
	USec   int64  `json:"usec,omitempty"` // how long it was away, where it came back
}

// Listener is a socket that somebody can reach.
type Listener struct {
	Proto  string   `json:"proto"`          // tcp, udp, unix
	Addr   string   `json:"addr"`           // the address, "*" for all; of unix the path or "@name"
	Port   int      `json:"port,omitempty"` // 0 for unix
	V6Only bool     `json:"v6only,omitempty"`
	Units  []string `json:"units,omitempty"` // whose processes hold it, of those that were asked about
	Inode  uint64   `json:"-"`
}

// The results of a HealthCheck.
const (
	HealthOK      = "ok"
	HealthFailed  = "failed"
	HealthNoted   = "noted"   // told, and no reason to roll back
	HealthSkipped = "skipped" // it could not be looked at
)

// HealthCheck is one look at whether the units do what they are for.
type HealthCheck struct {
	Check    string `json:"check"` // failed-units, restarts, listeners, command
	Unit     string `json:"unit,omitempty"`
	What     string `json:"what,omitempty"` // the command, the socket
	Result   string `json:"result"`
	Detail   string `json:"detail,omitempty"`
	USec     int64  `json:"usec"`                    // how long it took
	Deadline int64  `json:"deadline_usec,omitempty"` // how long it could have taken
}
