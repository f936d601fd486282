package vm

import (
	"encoding/json"
	"fmt"
	"maps"
)

// Drive is a disk of a virtual machine, /dev/vda and so on in their order. A write that
// fails is reported to the guest (werror=report).
type Drive struct {
	Path     string
	Format   string // raw where it is empty
	ReadOnly bool
	// Log is a file that gets all writes and flushes of the guest in the format of the kernel's
	// dm-log-writes (Documentation/admin-guide/device-mapper/log-writes.rst). It is made here.
	Log string
	// Debug are options of qemu's blkdebug driver ("inject-error", "set-state": docs/devel/blkdebug.rst
	// of qemu), which then lies between the log and the file: the log tells what the guest asked for.
	Debug map[string]any
	// Sync: what the guest flushed is written to the host's disk, too. A killed qemu leaves the
	// page cache as it is, so that tests have no use for it, and it is slow.
	Sync bool
}

// arguments of qemu for the disk with this number. The nodes are diskN (what the guest sees), and below it debugN
// and fileN.
func (d Drive) arguments(n int) []string {
	var args []string
	node := func(name string, options map[string]any) string {
		options["node-name"] = fmt.Sprint(name, n)
		options["read-only"] = d.ReadOnly
		b, err := json.Marshal(options)
		if err != nil {
			panic(err) // what Debug holds is written in a test's source
		}
		args = append(args, "-blockdev", string(b))
		return fmt.Sprint(name, n)
	}
	top := node("file", map[string]any{"driver": "file", "filename": d.Path, "discard": "unmap", "locking": "off", "cache": map[string]any{"no-flush": !d.Sync}})
	if d.Debug != nil {
		options := map[string]any{"driver": "blkdebug", "image": top}
		maps.Copy(options, d.Debug)
		top = node("debug", options)
	}
	format := d.Format
	if format == "" {
		format = "raw"
	}
	name := "disk"
	if d.Log != "" {
		name = "format"
	}
	top = node(name, map[string]any{"driver": format, "file": top})
	if d.Log != "" {
		b, _ := json.Marshal(map[string]any{"driver": "file", "filename": d.Log, "node-name": fmt.Sprint("log", n), "locking": "off", "cache": map[string]any{"no-flush": true}})
		args = append(args, "-blockdev", string(b))
		b, _ = json.Marshal(map[string]any{
			"driver": "blklogwrites", "node-name": fmt.Sprint("disk", n), "file": top, "log": fmt.Sprint("log", n), "log-sector-size": 512,
		})
		args = append(args, "-blockdev", string(b))
		top = fmt.Sprint("disk", n)
	}
	device := fmt.Sprintf("virtio-blk-pci,drive=%s,id=vd%d,werror=report,rerror=report", top, n)
	return append(args, "-device", device)
}
