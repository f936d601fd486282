package layouts

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"syscall"
	"testing"
	"unsafe"
)

// target is one line of a device-mapper table.
type target struct {
	start, length uint64 // sectors
	kind, params  string
}

// The requests of linux/dm-ioctl.h, and its struct dm_ioctl.
const (
	dmDevCreate  = 3
	dmDevSuspend = 6
	dmTableLoad  = 9

	dmHeader = 312
	dmName   = 48
	dmUUID   = 176
	dmFlags  = 28
	dmDev    = 40

	dmReadOnly = 1
)

// mapper makes a device-mapper device as dmsetup does, which no initramfs needs to
// hold for that, and gives its path.
func mapper(t *testing.T, name, uuid string, readOnly bool, table ...target) string {
	t.Helper()
	control, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	must(t, err)
	defer control.Close()
	call := func(nr uintptr, targets []target) []byte {
		buf := make([]byte, 16384)
		order := binary.NativeEndian
		order.PutUint32(buf[0:], 4) // version 4.0.0: the oldest that does this
		order.PutUint32(buf[12:], uint32(len(buf)))
		order.PutUint32(buf[16:], dmHeader)
		order.PutUint32(buf[20:], uint32(len(targets)))
		if readOnly && nr == dmTableLoad {
			order.PutUint32(buf[dmFlags:], dmReadOnly)
		}
		copy(buf[dmName:], name)
		if nr == dmDevCreate {
			copy(buf[dmUUID:], uuid)
		}
		at := dmHeader
		for _, tg := range targets {
			next := (40 + len(tg.params) + 1 + 7) / 8 * 8
			order.PutUint64(buf[at:], tg.start)
			order.PutUint64(buf[at+8:], tg.length)
			order.PutUint32(buf[at+20:], uint32(next))
			copy(buf[at+24:at+40], tg.kind)
			copy(buf[at+40:], tg.params)
			at += next
		}
		request := uintptr(3<<30 | dmHeader<<16 | 0xfd<<8 | nr)
		if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, control.Fd(), request, uintptr(unsafe.Pointer(&buf[0]))); errno != 0 {
			t.Fatalf("device-mapper request %d for %s: %v", nr, name, errno)
		}
		return buf
	}
	dev := binary.NativeEndian.Uint64(call(dmDevCreate, nil)[dmDev:])
	call(dmTableLoad, table)
	call(dmDevSuspend, nil) // without the flag that would suspend it resumes
	path := fmt.Sprintf("/dev/dm-%d", dev&0xff|dev>>12&0xfff00)
	shown, err := os.ReadFile("/sys/block/" + path[len("/dev/"):] + "/dm/uuid")
	must(t, err)
	if string(bytes.TrimSpace(shown)) != uuid {
		t.Fatalf("%s has the UUID %q", path, shown)
	}
	return path
}

// sectors is the size of a block device.
func sectors(t *testing.T, dev string) uint64 {
	t.Helper()
	f, err := os.Open(dev)
	must(t, err)
	defer f.Close()
	end, err := f.Seek(0, 2)
	must(t, err)
	return uint64(end) / 512
}
