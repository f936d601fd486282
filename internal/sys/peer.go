package sys

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// Peer is who holds the other end of a Unix socket: of one that was connected
// to, the process that began to listen there (unix(7), SO_PEERCRED).
type Peer struct {
	PID int
	UID uint32
}

// PeerOf asks the kernel who the peer of a connected Unix socket is.
func PeerOf(conn syscall.RawConn) (Peer, error) {
	var cred *unix.Ucred
	var err error
	if cerr := conn.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); cerr != nil {
		return Peer{}, fmt.Errorf("cannot ask who the peer is: %w", cerr)
	}
	if err != nil {
		return Peer{}, fmt.Errorf("cannot ask who the peer is: getsockopt(SO_PEERCRED): %w", err)
	}
	return Peer{PID: int(cred.Pid), UID: cred.Uid}, nil
}
