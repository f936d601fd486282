package engine

import (
	"context"
	"time"

	"github.com/liveupd/liveupd/internal/systemd"
)

// holdShutdown keeps the machine up until the returned function is called, where logind
// runs. Where it does not, or somebody goes past it, the worker's unit is what a
// shutdown waits for.
func (s *session) holdShutdown(ctx context.Context, why string) (release func()) {
	if !s.req.Live() || !systemd.Booted() {
		return func() {}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	release, err := systemd.Inhibit(ctx, why)
	if err != nil {
		return func() {}
	}
	return release
}
