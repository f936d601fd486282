package engine

import (
	"errors"
	"testing"

	"github.com/liveupd/liveupd/change"
)

// What a killed worker had come to is known by the names of transactions: a clock that is set
// while it works changes nothing of it.
func TestKilledCommit(t *testing.T) {
	before := map[string]string{"20261121-030000.000000-aa": "verified"}
	old := change.Generation{ID: "20261121-030000.000000-aa", Time: 2_000_000_000, State: "verified"}
	fresh := func(state string) change.Generation {
		return change.Generation{ID: "20261121-030000.000001-bb", Time: 1, State: state, HostAction: change.ActionReboot}
	}
	for _, tt := range []struct {
		name   string
		list   []change.Generation
		before map[string]string
		id     string
		err    error
	}{
		{"committed", []change.Generation{fresh("verified"), old}, before, "20261121-030000.000001-bb", nil},
		{"taken back", []change.Generation{fresh("rolled-back"), old}, before, "", ErrRolledBack},
		{"not begun", []change.Generation{old}, before, "", ErrNothingCommitted},
		{"the first of all", []change.Generation{fresh("verified")}, map[string]string{}, "20261121-030000.000001-bb", nil},
		{"no commit is asked for", []change.Generation{old}, nil, "", ErrNothingCommitted},
	} {
		result, err := killedCommit("apply", tt.list, tt.before, ErrWorkerGone)
		report, _ := result.(*change.Report)
		switch {
		case tt.err != nil && (!errors.Is(err, tt.err) || !errors.Is(err, ErrWorkerGone)):
			t.Errorf("%s: %v; want %v", tt.name, err, tt.err)
		case tt.err == nil && (err != nil || report == nil || report.ID != tt.id || report.Result != "pending"):
			t.Errorf("%s: %+v, %v; want %s", tt.name, report, err, tt.id)
		}
	}
}
