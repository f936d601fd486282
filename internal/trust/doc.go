// Package trust says whether an update is believed: which keys count, what was
// revoked, how old an update may be.
//
// # Keys
//
// Public keys are minisign's, one for each *.pub file in /etc/liveupd/keys of the
// root. The folder, those above it and each file must belong to root (or to the
// caller) and be writable for nobody else: a folder that is not refuses
// everything, a file that is not is no key.
//
// A key has an ID of 64 bits, which its signatures name. It is chosen at random, is not
// signed and proves nothing; two keys may bear the same.
//
// # Revocation
//
// The file revoked beside the keys lists keys that never confirm anything again,
// whether their .pub is there, stays there or comes back:
//
//	ID DATE KEY|- REASON
//
// ID is 16 hexadecimal digits, DATE is RFC 3339 in UTC (or its day alone), KEY the base64 of the
// public key where it was known (it is refused under any ID, then), REASON the rest of the
// line. By hand, the ID is enough. Empty lines and those that begin with # are passed over. What cannot be
// read refuses everything: a revocation that is lost would be worse.
//
// An update revokes keys, too: those that its signed head names, once it is
// applied and verified, and never the one that has signed it. They are kept in
// the State.
//
// # What was seen
//
// The State of a root lies in its .liveupd: for each name of an update the highest
// sequence that was applied and verified (the floor), the newest time at which such an
// update was signed, and the keys that such updates have revoked. An update below its
// floor is refused, whoever has signed it; one at its floor may be applied again.
// Nothing lowers it, a rollback neither. The floor is by name alone: by signer, too,
// the updates of an old key could be replayed after it was replaced.
//
// While an update is applied, its Claim lies beside the State; whoever finds
// it there after the transaction was verified carries it over. So a crash between
// the two loses nothing, and an update that was taken back counts for nothing.
//
// # Time
//
// An update may expire. The time that counts is the latest of the system's clock, the time of the
// commit that the running program was built from, and the newest signed time in the State: a clock that
// is set back, or that starts in 1970, does not bring an old update back to life.
package trust
