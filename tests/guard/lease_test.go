package guard

import (
	"strings"
	"testing"
	"time"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/tests/machine"
)

// The router gives leases of a minute by DHCP, and advertises a prefix by IPv6.
const routerMain = `import fcntl
import socket
import struct
import threading
import time

LINK = b"there0"

def option(code, value):
    return bytes([code, len(value)]) + value

def dhcp():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, LINK)
    s.bind(("0.0.0.0", 67))
    server, mine = socket.inet_aton("10.77.0.1"), socket.inet_aton("10.77.0.2")
    while True:
        p = s.recv(2000)
        at, kind = 240, 0
        while at < len(p) and p[at] != 255:
            if p[at] == 0:
                at += 1
                continue
            if p[at] == 53:
                kind = p[at + 2]
            at += 2 + p[at + 1]
        answer = {1: 2, 3: 5}.get(kind)
        if not answer:
            continue
        head = struct.pack("!4sI4s4s4s4s4s16s192s4s", b"\x02\x01\x06\x00", struct.unpack("!I", p[4:8])[0], p[8:12],
                           b"\0\0\0\0", mine, server, b"\0\0\0\0", p[28:44], b"", b"\x63\x82\x53\x63")
        body = option(53, bytes([answer])) + option(54, server) + option(51, struct.pack("!I", 60))
        body += option(1, socket.inet_aton("255.255.255.0")) + option(3, server) + b"\xff"
        time.sleep(1)  # a server that is in no hurry
        s.sendto(head + body, ("255.255.255.255", 68))

def advertise():
    s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, LINK)
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 255)
    ifindex = socket.if_nametoindex(LINK.decode())
    lifetime = 600
    while True:
        lifetime += 1
        ra = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, lifetime, 0, 0)
        ra += struct.pack("!BBBBIII16s", 3, 4, 64, 0xC0, lifetime * 2, lifetime, 0, socket.inet_pton(socket.AF_INET6, "2001:db8:77::"))
        try:
            s.sendto(ra, ("ff02::1", 0, 0, ifindex))
        except OSError:
            pass
        time.sleep(2)

threading.Thread(target=dhcp).start()
advertise()
`

// What DHCP and router advertisements renew, and what a link takes to come back, is no
// loss; with the times of the defaults.
func TestLeases(t *testing.T) {
	machine.Require(t)
	if !long() {
		t.Skip("the long form has it: LIVEUPD_LONG=1")
	}
	m := machine.Boot(t, machine.Options{Root: "trixie", Customize: services, Programs: machine.Programs(t)})
	m.Shell("systemctl reset-failed; touch /run/well; rm /etc/liveupd/liveupd.toml.d/*; cat >/run/router.py <<'END'\n" + routerMain + "END\n" +
		`systemd-run --unit=router --service-type=exec ip netns exec router python3 /run/router.py
cat >/etc/` + strings.TrimPrefix(networkConf, "etc/") + ` <<'END'
[Match]
Name=uplink0

[Network]
DHCP=ipv4
IPv6AcceptRA=yes
END
ip addr flush dev uplink0
systemctl restart systemd-networkd.service`)
	connected := func() bool {
		return m.Run("sh", "-c", "ip route show default | grep -q 'via 10.77.0.1 .*proto dhcp' && ip -6 route show default | grep -q via && ip -6 addr show dev uplink0 | grep -q 2001:db8:77:").Code == 0
	}
	for deadline := time.Now().Add(time.Minute); !connected(); time.Sleep(200 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no lease:\n%s\n%s", network(m), m.Journal("router.service"))
		}
	}
	for _, tt := range []struct {
		name    string
		changed map[string]string
		back    bool
	}{
		{"networkd restarts", map[string]string{"etc/systemd/networkd.conf": "[Network]\nSpeedMeter=yes\n"}, false},
		{"the link goes down and comes up", map[string]string{bridgeConf: files[bridgeConf] + "RENEW=yes\n"}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			began := time.Now()
			out := apply(t, m, update(t, m, tt.changed)).Want(t, 0)
			t.Logf("it took %s", time.Since(began).Round(time.Second))
			var back bool
			for _, f := range out.Report.Network {
				back = back || f.Result == change.NetBack
				if f.Result != change.NetKept && f.Result != change.NetBack {
					t.Errorf("%+v", f)
				} else if f.Result == change.NetBack {
					t.Logf("%+v", f)
				}
			}
			if tt.back && !back {
				t.Error("nothing was away: the update is no test of it")
			}
			if f := result(out, "default route via fe80::"); f.Kind == "" {
				t.Errorf("the default route of IPv6 is not watched: %+v", out.Report.Network)
			}
			if !connected() {
				t.Errorf("no lease:\n%s", network(m))
			}
		})
	}
}
