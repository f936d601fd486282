package restart

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/systemd"
)

// managers are the managers of users in memory; one of nil hangs.
type managers map[string]*recorder

type userRecorder struct{ *recorder }

func (userRecorder) Close() {}

func (m managers) Connect(ctx context.Context, manager string) (UserBus, error) {
	r, ok := m[manager]
	switch {
	case !ok:
		return nil, fmt.Errorf("cannot connect to %s: %w", manager, systemd.ErrNotActive)
	case r == nil:
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return userRecorder{r}, nil
}

func (m managers) Reexec(ctx context.Context, manager string) error {
	if r, ok := m[manager]; ok && r != nil {
		r.log = append(r.log, "reexec")
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

func ofManager(manager string, list []change.Step) []change.Step {
	for i := range list {
		list[i].Manager = manager
	}
	return list
}

const aliceM, bobM, carolM = "user@1000.service", "user@1001.service", "user@1002.service"

// One manager works, one hangs, one has gone: the run is done, and each step says what became of it.
func TestUsers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		system := &recorder{units: fleet(active("a.service"))}
		alices := &recorder{units: fleet(active("a.service"), active("old.service"))}
		all := slices.Concat(
			steps("stop gone.service"), ofManager(aliceM, steps("stop old.service")), ofManager(bobM, steps("stop old.service")),
			steps("daemon-reload systemd", "restart a.service", "reload "+aliceM, "reload "+bobM),
			ofManager(aliceM, steps("daemon-reload systemd", "restart a.service")),
			ofManager(bobM, steps("daemon-reload systemd", "restart a.service")),
			ofManager(carolM, steps("restart a.service")))
		began := time.Now()
		results, err := Run(context.Background(), system, all, Options{Settle: -1, Users: managers{aliceM: alices, bobM: nil}})
		if err != nil {
			t.Fatalf("the run failed: %v", err)
		}
		if took := time.Since(began); took > 4*time.Minute {
			t.Errorf("it took %s", took)
		}
		var got []string
		for _, r := range results {
			got = append(got, fmt.Sprintf("%s %s: %s", r.Step.Do, change.UnitKey(r.Step.Manager, r.Step.Target), r.Result))
		}
		want := []string{
			"stop gone.service: done", "stop " + aliceM + "/old.service: done", "stop " + bobM + "/old.service: skipped",
			"daemon-reload systemd: done", "restart a.service: done", "reload " + aliceM + ": done", "reload " + bobM + ": skipped",
			"daemon-reload " + aliceM + "/systemd: done", "restart " + aliceM + "/a.service: done",
			"daemon-reload " + bobM + "/systemd: skipped", "restart " + bobM + "/a.service: skipped", "restart " + carolM + "/a.service: skipped",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("the results (-want +got):\n%s", diff)
		}
		for _, r := range results {
			hung := r.Step.Manager == bobM || r.Step.Target == bobM
			if strings.HasPrefix(r.Detail, Unreached) != hung {
				t.Errorf("%+v", r)
			}
		}
		if diff := cmp.Diff([]string{"jobs StopUnit gone.service", "reload", "jobs TryRestartUnit a.service"}, system.log); diff != "" {
			t.Errorf("of the system's manager was asked (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]string{"jobs StopUnit old.service", "reexec", "reload", "jobs TryRestartUnit a.service"}, alices.log); diff != "" {
			t.Errorf("of alice's manager was asked (-want +got):\n%s", diff)
		}
	})
}

// A user's service that fails is no failure of the run. The control: the system's is.
func TestUsersFail(t *testing.T) {
	for _, manager := range []string{aliceM, ""} {
		synctest.Test(t, func(t *testing.T) {
			broken := func() *recorder {
				return &recorder{
					units: fleet(active("a.service")),
					after: map[string]func(*change.UnitState){"a.service": func(u *change.UnitState) { u.ActiveState = "failed" }},
				}
			}
			results, err := Run(context.Background(), broken(), ofManager(manager, steps("restart a.service")),
				Options{Settle: -1, Users: managers{aliceM: broken()}})
			if (err != nil) != (manager == "") {
				t.Errorf("manager %q: the run ended with %v", manager, err)
			}
			if len(results) != 1 || results[0].Result != failed || results[0].Journal == "" || results[0].Step.Manager != manager {
				t.Errorf("manager %q: %+v", manager, results)
			}
		})
	}
}

// Where the system's own steps fail the managers of users are not asked at all.
func TestUsersAfterTheSystem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		system := &recorder{units: fleet(active("a.service")), reloadErr: errors.New("no")}
		alices := &recorder{units: fleet(active("a.service"))}
		_, err := Run(context.Background(), system, append(steps("daemon-reload systemd"), ofManager(aliceM, steps("restart a.service"))...),
			Options{Settle: -1, Users: managers{aliceM: alices}})
		if err == nil || len(alices.log) > 0 {
			t.Errorf("the run ended with %v; of alice's manager was asked %q", err, alices.log)
		}
	})
}

func TestUsersInverse(t *testing.T) {
	results := []change.StepResult{
		{Step: ofManager(aliceM, steps("stop old.service"))[0], Result: done},
		{Step: steps("reload " + aliceM)[0], Result: done},
		{Step: ofManager(aliceM, steps("restart a.service"))[0], Result: done},
		{Step: ofManager(bobM, steps("restart a.service"))[0], Result: skipped},
	}
	var got []string
	for _, s := range Inverse(results) {
		got = append(got, s.Do+" "+change.UnitKey(s.Manager, s.Target))
	}
	want := []string{
		"restart " + aliceM + "/a.service", "start " + aliceM + "/a.service", "reload " + aliceM, "start " + aliceM + "/old.service",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the inverse (-want +got):\n%s", diff)
	}
}
