// Package rootfs reads what a root tree says by itself: which units it
// defines, which of them a boot of it starts, and which paths each service
// runs and reads. It only reads. Nothing of the tree is ever executed, and no
// interpreter or library of it is trusted: needrestart got five privilege
// escalations from asking a target's own Python and Perl.
//
// A View answers from one tree. Load asks it, in this order:
//
//  1. The load path of systemd.unit(5) is listed, highest directory first. The
//     first file of a name wins; a symlink to another unit of the load path is
//     an alias, one to /dev/null (or an empty file) a mask, any other a linked
//     unit.
//  2. Each unit is its fragment (an instance's is its own or its template's)
//     and its drop-ins, chosen and sorted by file name across all levels as
//     the manager does it, with resets by empty assignment applied. An entry
//     of a .wants, .requires or .upholds directory stands as the assignment
//     that it equals.
//  3. From default.target along Wants=, Requires=, Requisite=, BindsTo= and
//     Upholds=, and from sockets, timers and paths to what they trigger, the
//     reached units are collected, each with the unit that leads to it.
//     Conditions are not judged: they depend on the machine.
//  4. For each service that was asked for, the paths that its processes run
//     and read are collected: the program, the libraries that ld.so would load
//     in that root, the interpreter, script and modules, environment files,
//     credentials, bind sources, its root.
//
// Guarantees: no path leads out of the root (symlinks are resolved in user
// land, and the kernel is asked for symlink-free paths below the root's
// descriptor only); each symlink that was followed is reported beside its
// target, since a change of it changes what is reached; what cannot be read or
// understood becomes a warning of the tree, never an error of the load and
// never a silent "does not use it" for the rest of the unit; and the same tree
// gives the same result, in the same order.
//
// The unit parser is our own: go-systemd's unit package gives neither the file
// nor the order of effect of an assignment, joins continuation lines in
// another way than the manager does (it keeps comments inside of them) and
// fails as a whole on a line that the manager skips.
package rootfs
