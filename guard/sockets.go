package guard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink/nl"

	"github.com/liveupd/liveupd/change"
)

// The requests and answers of sock_diag(7): linux/inet_diag.h, linux/unix_diag.h.
const (
	sockDiagByFamily = 20
	netlinkSockDiag  = 4 // NETLINK_SOCK_DIAG

	stateListen = 10 // TCP_LISTEN
	stateClose  = 7  // TCP_CLOSE: a UDP socket that is bound and not connected

	inetDiagV6Only = 11
	unixDiagName   = 0
	unixShowName   = 1
)

// inetRequest is struct inet_diag_req_v2.
type inetRequest struct {
	family, proto byte
	states        uint32
}

func (r *inetRequest) Len() int { return 56 }
func (r *inetRequest) Serialize() []byte {
	b := make([]byte, r.Len())
	b[0], b[1] = r.family, r.proto
	binary.NativeEndian.PutUint32(b[4:], r.states)
	return b
}

// unixRequest is struct unix_diag_req.
type unixRequest struct{ states, show uint32 }

func (r *unixRequest) Len() int { return 24 }
func (r *unixRequest) Serialize() []byte {
	b := make([]byte, r.Len())
	b[0] = syscall.AF_UNIX
	binary.NativeEndian.PutUint32(b[4:], r.states)
	binary.NativeEndian.PutUint32(b[12:], r.show)
	return b
}

// Listeners reads who can be reached by TCP, UDP and UNIX sockets in this network
// namespace, in a fixed order. Connections are left out in the kernel.
func Listeners() ([]change.Listener, error) {
	var out []change.Listener
	for _, q := range []struct {
		proto string
		body  nl.NetlinkRequestData
		read  func([]byte) (change.Listener, bool)
	}{
		{"tcp", &inetRequest{syscall.AF_INET, syscall.IPPROTO_TCP, 1 << stateListen}, inetListener},
		{"tcp", &inetRequest{syscall.AF_INET6, syscall.IPPROTO_TCP, 1 << stateListen}, inetListener},
		{"udp", &inetRequest{syscall.AF_INET, syscall.IPPROTO_UDP, 1 << stateClose}, inetListener},
		{"udp", &inetRequest{syscall.AF_INET6, syscall.IPPROTO_UDP, 1 << stateClose}, inetListener},
		{"unix", &unixRequest{1 << stateListen, unixShowName}, unixListener},
	} {
		req := nl.NewNetlinkRequest(sockDiagByFamily, syscall.NLM_F_DUMP)
		req.AddData(q.body)
		answers, err := dump(func() ([][]byte, error) { return req.Execute(netlinkSockDiag, 0) })
		if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.EAFNOSUPPORT) {
			continue // a kernel without this family, or without its part of sock_diag
		}
		if err != nil {
			return nil, fmt.Errorf("cannot list the listening sockets: %w", err)
		}
		for _, a := range answers {
			if l, ok := q.read(a); ok {
				l.Proto = q.proto
				out = append(out, l)
			}
		}
	}
	slices.SortFunc(out, func(a, b change.Listener) int {
		if c := strings.Compare(a.Proto+" "+a.Addr, b.Proto+" "+b.Addr); c != 0 {
			return c
		}
		return a.Port - b.Port
	})
	return out, nil
}

// inetListener reads a struct inet_diag_msg with its attributes.
func inetListener(b []byte) (change.Listener, bool) {
	const head = 72
	if len(b) < head {
		return change.Listener{}, false
	}
	var ip netip.Addr
	if b[0] == syscall.AF_INET6 {
		ip = netip.AddrFrom16([16]byte(b[8:24])).Unmap()
	} else {
		ip = netip.AddrFrom4([4]byte(b[8:12]))
	}
	l := change.Listener{
		Addr: ip.String(), Port: int(binary.BigEndian.Uint16(b[4:])), Inode: uint64(binary.NativeEndian.Uint32(b[68:])),
	}
	attributes(b[head:], func(kind uint16, value []byte) {
		if kind == inetDiagV6Only && len(value) > 0 {
			l.V6Only = value[0] != 0
		}
	})
	return l, l.Port != 0
}

// unixListener reads a struct unix_diag_msg with its attributes.
func unixListener(b []byte) (change.Listener, bool) {
	const head = 16
	if len(b) < head {
		return change.Listener{}, false
	}
	l := change.Listener{Inode: uint64(binary.NativeEndian.Uint32(b[4:]))}
	attributes(b[head:], func(kind uint16, value []byte) {
		if kind != unixDiagName || len(value) == 0 {
			return
		}
		if value[0] == 0 {
			l.Addr = "@" + string(value[1:])
		} else {
			l.Addr = strings.TrimRight(string(value), "\x00")
		}
	})
	return l, l.Addr != ""
}

// attributes walks over a list of struct nlattr.
func attributes(b []byte, each func(kind uint16, value []byte)) {
	for len(b) >= 4 {
		size := int(binary.NativeEndian.Uint16(b))
		if size < 4 || size > len(b) {
			return
		}
		each(binary.NativeEndian.Uint16(b[2:]), b[4:size])
		b = b[min((size+3)&^3, len(b)):]
	}
}
