package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/engine"
	"github.com/liveupd/liveupd/internal/sys"
)

// insideVerb makes this program apply SOURCE to ROOT in its own process, through the
// engine: as it is ("with"), without all that makes it durable ("without"), or killed
// in the middle of the swap, after so many renames (a number).
const insideVerb = "inside"

func inside(args []string) error {
	if len(args) != 3 {
		return errors.New("usage: inside with|without|RENAMES ROOT SOURCE")
	}
	hook, err := hookFor(args[0])
	if err != nil {
		return err
	}
	e := &engine.Engine{Kernel: sys.WithHook(hook)}
	result, err := e.Run(context.Background(), engine.Request{
		Verb: "apply", Root: args[1], Source: "tree:" + args[2], AllowUnsigned: true, NoPrompt: true,
	}, engine.Events{})
	if err != nil {
		return err
	}
	report, ok := result.(*change.Report)
	if !ok || report.Result != "done" {
		return fmt.Errorf("the apply ended with %+v", result)
	}
	return json.NewEncoder(os.Stdout).Encode(report)
}

// hookFor gives each way a hook, so that asking it costs each the same.
func hookFor(way string) (sys.Hook, error) {
	switch way {
	case "with":
		return func(sys.Call) sys.Fault { return sys.Fault{} }, nil
	case "without":
		return func(c sys.Call) sys.Fault {
			return sys.Fault{Skip: c.Name == "syncfs" || c.Name == "fsync" || c.Name == "sync_file_range"}
		}, nil
	}
	left, err := strconv.Atoi(way)
	if err != nil {
		return nil, fmt.Errorf("unknown way %q", way)
	}
	states := 0 // that were written: staging, then committing
	return func(c sys.Call) sys.Fault {
		if c.Name != "renameat2" {
			return sys.Fault{}
		}
		if c.To == "state" {
			states++
		} else if states == 2 {
			left--
		}
		if left == 0 {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		return sys.Fault{}
	}, nil
}
