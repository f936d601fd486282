package runner

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/opencontainers/runc/libcontainer"

	"github.com/liveupd/liveupd/internal/sys"
)

// libcontainer re-executes this program as "init" and expects that the namespaces
// are made before Go's runtime starts: runc does so in C (libcontainer/nsenter).
// Here a first process, in Go, reads libcontainer's bootstrap message (netlink
// attributes, libcontainer/message_linux.go), starts a second one that is born in
// all the new namespaces as its sibling, answers with its number, and ends. clone(2) with
// CLONE_PARENT and CLONE_NEWPID together works since Linux 3.13. So the program
// needs no cgo and no libc.

// stage2 marks the second process.
const stage2 = "LIVEUPD_SANDBOX_STAGE=2"

// InitMain is the main function of a process that libcontainer started; false
// where this is none.
func InitMain() bool {
	if len(os.Args) != 2 || os.Args[1] != "init" || os.Getenv("_LIBCONTAINER_INITPIPE") == "" {
		return false
	}
	if os.Getenv("LIVEUPD_SANDBOX_STAGE") == "2" {
		// With the parent, which is the runner, all of the container ends.
		if err := sys.DieWithParent(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1) //nolint:forbidigo // this process is nothing but this function
		}
		libcontainer.Init()
	}
	if err := stage1(); err != nil {
		fmt.Fprintln(os.Stderr, "cannot make the namespaces:", err)
		os.Exit(1) //nolint:forbidigo // this process is nothing but this function
	}
	return true
}

func stage1() error {
	n, err := strconv.Atoi(os.Getenv("_LIBCONTAINER_INITPIPE"))
	if err != nil {
		return fmt.Errorf("the init pipe: %w", err)
	}
	flags, err := readBootstrap(n)
	if err != nil {
		return err
	}
	files, err := inherited()
	if err != nil {
		return err
	}
	pid, err := syscall.ForkExec("/proc/self/exe", os.Args, &syscall.ProcAttr{
		Env: append(os.Environ(), stage2), Files: files,
		Sys: &syscall.SysProcAttr{Cloneflags: flags | sys.CloneParent, Setsid: true},
	})
	if err != nil {
		return err
	}
	// There is no process between: a number that none can have is waited for in vain.
	const none = 1<<22 + 1
	answer, err := json.Marshal(map[string]int{"stage1_pid": none, "stage2_pid": pid})
	if err != nil {
		return err
	}
	_, err = syscall.Write(n, append(answer, '\n'))
	return err
}

// inherited lists the descriptors up to the highest that libcontainer handed down,
// each at its own place.
func inherited() ([]uintptr, error) {
	highest := 2
	for _, env := range os.Environ() {
		name, val, _ := strings.Cut(env, "=")
		if !strings.HasPrefix(name, "_LIBCONTAINER_") || name == "_LIBCONTAINER_LOGLEVEL" {
			continue
		}
		if n, err := strconv.Atoi(val); err == nil {
			highest = max(highest, n)
		}
	}
	files := make([]uintptr, highest+1)
	for i := range files {
		files[i] = ^uintptr(0) // closed in the child
		if _, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(i)); err == nil {
			files[i] = uintptr(i)
		}
	}
	return files, nil
}

// Of the netlink header: its length and the message's type, and what an attribute has.
const (
	headerSize = 16
	attrSize   = 4
	maxMessage = 1 << 16
)

var errBootstrap = errors.New("libcontainer's bootstrap message is not understood")

// readBootstrap reads the one thing of the message that this sandbox uses: which
// namespaces are new. What else libcontainer may ask for is refused, not passed over.
func readBootstrap(fd int) (flags uintptr, err error) {
	read := func(b []byte) error {
		for len(b) > 0 {
			n, err := syscall.Read(fd, b)
			if errors.Is(err, syscall.EINTR) {
				continue
			}
			if err == nil && n == 0 {
				err = io.ErrUnexpectedEOF
			}
			if err != nil {
				return fmt.Errorf("cannot read the bootstrap message: %w", err)
			}
			b = b[n:]
		}
		return nil
	}
	header := make([]byte, headerSize)
	if err := read(header); err != nil {
		return 0, err
	}
	size := binary.NativeEndian.Uint32(header)
	if size < headerSize || size > maxMessage || binary.NativeEndian.Uint16(header[4:]) != libcontainer.InitMsg {
		return 0, errBootstrap
	}
	body := make([]byte, size-headerSize)
	if err := read(body); err != nil {
		return 0, err
	}
	return parseBootstrap(body)
}

func parseBootstrap(body []byte) (flags uintptr, err error) {
	for len(body) >= attrSize {
		size := int(binary.NativeEndian.Uint16(body))
		kind := binary.NativeEndian.Uint16(body[2:])
		if size < attrSize || size > len(body) {
			return 0, errBootstrap
		}
		val := body[attrSize:size]
		switch {
		case kind == libcontainer.CloneFlagsAttr && len(val) >= 4:
			flags = uintptr(binary.NativeEndian.Uint32(val))
		case kind == libcontainer.RootlessEUIDAttr && len(val) >= 1 && val[0] == 0:
		default:
			return 0, fmt.Errorf("%w: attribute %d", errBootstrap, kind)
		}
		body = body[min(len(body), (size+3)&^3):]
	}
	if flags == 0 {
		return 0, errBootstrap
	}
	return flags, nil
}
