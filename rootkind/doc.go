// Package rootkind tells a root that can be updated in place from one that
// cannot, and what to use for the latter.
//
//  1. Look gathers what a root shows of itself: the file system that it is on and
//     the block devices below that, a subvolume's own flag, the marks that
//     image-based systems leave in /run and in the tree. It opens nothing for
//     writing and follows no symlink out of the root.
//  2. Evidence.Kind names the kind, from that alone. Who manages the root comes
//     before what it lies on: who runs NixOS is told of nixos-rebuild, and not that
//     a mount is read-only.
//
// Guarantee: a root that is named here is refused before anything is made
// writable or written. One that is not named can still turn out to lack what the
// commit needs: that is tried, and not guessed from a name (package transact).
package rootkind
