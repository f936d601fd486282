package transact

import (
	"github.com/liveupd/liveupd/internal/journal"
)

// Cut lists the transactions that stopped between their commit point and the end of
// the exchange: the tree is neither old nor new. It reads the states alone, so that
// a damaged journal of long ago stops nobody.
func (s *Store) Cut() ([]string, error) {
	var cut []string
	ids, _, err := s.vols[0].ids()
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		st, err := s.status(id)
		if err != nil {
			return nil, needsPerson(id, err)
		}
		if st.State == journal.Committing || st.State == journal.RollingBack {
			cut = append(cut, id)
		}
	}
	return cut, nil
}

// ForgetAttempts lets a person try a recovery again that has not come to its end
// as often as it may.
func (s *Store) ForgetAttempts() error {
	ids, err := s.Cut()
	if err != nil {
		return err
	}
	for _, id := range ids {
		t, err := s.load(id)
		if err != nil {
			return err
		}
		if t.status.Attempts > 0 {
			err = t.resetAttempts()
		}
		t.Close()
		if err != nil {
			return err
		}
	}
	return nil
}
