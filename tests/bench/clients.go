package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"
)

// clientsVerb makes this program the clients of a machine's servers, on its loopback. They
// ask until the program is told to end, and then say how they were served.
const clientsVerb = "clients"

// client asks one server, each time on a connection of its own.
type client struct {
	name  string
	every time.Duration
	ask   func(ctx context.Context) error
}

// patience is how long a client waits for one answer.
const patience = 5 * time.Second

func allClients() []client {
	return []client{
		{"nginx", 10 * time.Millisecond, askHTTP},
		{"exim4", 50 * time.Millisecond, greeting("127.0.0.1:25", "220 ", "QUIT\r\n")},
		{"ssh", 50 * time.Millisecond, greeting("127.0.0.1:22", "SSH-2.0-", "SSH-2.0-bench\r\n")},
	}
}

// served is how one client was served.
type served struct {
	Name   string  `json:"name"`
	Asked  int     `json:"asked"`
	Failed int     `json:"failed"`
	GapMS  float64 `json:"gap_ms"` // the longest time from one good answer to the next
	Error  string  `json:"error,omitempty"`
}

// clients prints a line once each server has answered, and at SIGTERM how each client was served.
func clients() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	list := allClients()
	for _, c := range list {
		deadline := time.Now().Add(time.Minute)
		for c.try(ctx) != nil {
			if ctx.Err() != nil || time.Now().After(deadline) {
				return fmt.Errorf("%s does not answer: %w", c.name, c.try(context.Background()))
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	fmt.Println("served")
	out := make([]served, len(list))
	var wg sync.WaitGroup
	for i, c := range list {
		wg.Go(func() { out[i] = c.run(ctx) })
	}
	wg.Wait()
	return json.NewEncoder(os.Stdout).Encode(out)
}

func (c client) try(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return c.ask(ctx)
}

func (c client) run(ctx context.Context) served {
	s := served{Name: c.name}
	last := time.Now()
	gap := func() { s.GapMS = max(s.GapMS, float64(time.Since(last).Microseconds())/1000) }
	tick := time.NewTicker(c.every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			gap() // a server that is away at the end was away until then
			return s
		case <-tick.C:
		}
		err := c.try(context.WithoutCancel(ctx))
		s.Asked++
		if err != nil {
			s.Failed++
			s.Error = err.Error()
			continue
		}
		gap()
		last = time.Now()
	}
}

var transport = &http.Transport{DisableKeepAlives: true}

func askHTTP(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1/", nil)
	if err != nil {
		return err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("answered %s", resp.Status)
	}
	return nil
}

// greeting is a server that speaks first; a polite client says something before it goes.
func greeting(address, want, bye string) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err != nil {
			return err
		}
		defer conn.Close()
		deadline, _ := ctx.Deadline()
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
		line, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil {
			return err
		}
		if !strings.HasPrefix(line, want) {
			return fmt.Errorf("greeted with %.40q", line)
		}
		_, err = io.WriteString(conn, bye)
		if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
			return nil // it was served
		}
		return err
	}
}
