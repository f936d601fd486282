// Package apt knows how Debian's package manager is made to work in a sandbox, and
// what of its work is to reach the live root:
//
//  1. apt itself resolves, downloads and verifies, then dpkg unpacks and configures:
//     all over a view of the root (Script), first with the network, then without.
//  2. What a maintainer script would have done to the running system is recorded:
//     policy-rc.d refuses each action and notes it, boot loaders and modules of other
//     builders are asked to be made after the commit (Recorded).
//  3. Of /var only that is kept which packages own, which is new, which belongs to the package
//     manager, or which no process of the host has in use (Judge): a script that
//     opened a running server's database had a copy before it.
//  4. The locks of apt and dpkg on the host are held meanwhile, in the way that those
//     programs hold them, so that each finds the other (Lock).
package apt
