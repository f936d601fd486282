package change

import "errors"

// Conditions that a caller acts upon; match with errors.Is.
var (
	// ErrVerification: a signature, digest or sequence refuses the update.
	ErrVerification = errors.New("verification refused the update")
	// ErrLocked: another transaction, or a package manager, holds a lock.
	ErrLocked = errors.New("locked by another transaction")
	// ErrDrift: what was planned no longer fits what is there.
	ErrDrift = errors.New("the system changed since the plan was made")
	// ErrNeedsPerson: recovery cannot decide by itself.
	ErrNeedsPerson = errors.New("recovery needs a person")
)

// HintError carries a line that tells a person what to do about Err.
type HintError struct {
	Err  error
	Hint string
}

func (e *HintError) Error() string { return e.Err.Error() }
func (e *HintError) Unwrap() error { return e.Err }

// WithHint adds a hint to an error; a nil error stays nil.
func WithHint(err error, hint string) error {
	if err == nil {
		return nil
	}
	return &HintError{Err: err, Hint: hint}
}
