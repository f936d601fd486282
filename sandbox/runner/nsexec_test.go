package runner

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/opencontainers/runc/libcontainer"
)

func attr(kind uint16, val []byte) []byte {
	b := make([]byte, attrSize, attrSize+len(val)+3)
	binary.NativeEndian.PutUint16(b, uint16(attrSize+len(val)))
	binary.NativeEndian.PutUint16(b[2:], kind)
	b = append(b, val...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func TestParseBootstrap(t *testing.T) {
	flags := []byte{0, 0, 2, 0x20}
	want := uintptr(binary.NativeEndian.Uint32(flags))
	ours := append(attr(libcontainer.CloneFlagsAttr, flags), attr(libcontainer.RootlessEUIDAttr, make([]byte, 4))...)
	if got, err := parseBootstrap(ours); err != nil || got != want {
		t.Errorf("libcontainer's message: %#x, %v; want %#x", got, err, want)
	}
	for name, b := range map[string][]byte{
		"nothing":                 nil,
		"no namespaces":           attr(libcontainer.CloneFlagsAttr, make([]byte, 4)),
		"a mapping of users":      append(attr(libcontainer.CloneFlagsAttr, flags), attr(libcontainer.UidmapAttr, []byte("0 0 1"))...),
		"namespaces to join":      append(attr(libcontainer.CloneFlagsAttr, flags), attr(libcontainer.NsPathsAttr, []byte("net:/x"))...),
		"rootless":                append(attr(libcontainer.CloneFlagsAttr, flags), attr(libcontainer.RootlessEUIDAttr, []byte{1, 0, 0, 0})...),
		"a length beyond its end": {255, 0, 1, 1, 0, 0, 0, 0},
		"a length of nothing":     {0, 0, 1, 1, 0, 0, 0, 0},
	} {
		if got, err := parseBootstrap(b); !errors.Is(err, errBootstrap) {
			t.Errorf("%s: %#x, %v; want it refused", name, got, err)
		}
	}
}
