package sys

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Call is one mutating call, as the fault hook sees it.
type Call struct {
	Name string // the system call's name
	Path string // what it acts on, relative to its directory descriptor
	To   string // the second path of renameat2, linkat and symlinkat
	Len  int    // bytes to write

	// Dir and ToDir are what Path and To are relative to. Where the call is made on an
	// open object, Dir is that object and On is true. nil for calls on mounts.
	Dir, ToDir *FD
	On         bool
	Flags      uint // of renameat2
}

// Fault is what a hook orders for one call: Err makes it fail without being
// made (EINTR: it is asked for again, as the kernel's own would be), Short cuts
// a write to that many bytes, Skip reports success without making the call: the
// negative control of a protection. The zero value lets it pass.
type Fault struct {
	Err   error
	Short int
	Skip  bool
}

// Hook sees each mutating call before it is made, from any goroutine.
type Hook func(Call) Fault

// Kernel makes the calls that change something. The zero value and nil make
// them straight; WithHook gives one that asks first.
type Kernel struct{ hook Hook }

// WithHook returns a Kernel that asks hook before each mutating call.
func WithHook(hook Hook) *Kernel { return &Kernel{hook: hook} }

func (k *Kernel) fault(c Call) Fault {
	if k == nil || k.hook == nil {
		return Fault{}
	}
	return k.hook(c)
}

// do makes a mutating call: asks the hook, retries on EINTR, and names the
// call and its paths in the error.
func (k *Kernel) do(c Call, call func() error) error {
	for {
		f := k.fault(c)
		if f.Skip {
			return nil
		}
		err := f.Err
		if err == nil {
			err = call()
		}
		if !errors.Is(err, unix.EINTR) {
			return callError(c, err)
		}
	}
}

func callError(c Call, err error) error {
	if err == nil {
		return nil
	}
	if c.To != "" {
		return &os.LinkError{Op: c.Name, Old: c.Path, New: c.To, Err: err}
	}
	return &os.PathError{Op: c.Name, Path: c.Path, Err: err}
}

// retry makes a reading call until it is not interrupted.
func retry(name, path string, call func() error) error {
	for {
		err := call()
		if !errors.Is(err, unix.EINTR) {
			return callError(Call{Name: name, Path: path}, err)
		}
	}
}

// UnsupportedError names what the kernel or file system lacks and what has it.
type UnsupportedError struct {
	Feature string
	Needs   string
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("%s is not supported here (needs %s)", e.Feature, e.Needs)
}
