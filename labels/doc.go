// Package labels tells which SELinux label an object gets by the rules of the
// root that it lands in, where the source gives it none: file_contexts(5), as
// libselinux's file backend reads it (selabel_file(5)), without libselinux, whose
// library a half-updated root may not be able to load.
//
//  1. /etc/selinux/config names the policy; without one, or without its
//     file_contexts, there are no rules.
//  2. file_contexts, then .homedirs, then .local are one list. A rule is a regular
//     expression for the whole path, a type of object or none, and a context.
//  3. The path's beginning is replaced by .subs, and what comes of that by .subs_dist.
//  4. Rules without a metacharacter come before all others; among equals the last
//     one wins. <<none>> as a context means that the rules leave the object alone.
//  5. An object whose present type is in customizable_types keeps it: somebody set
//     it by hand, and restorecon would leave it, too.
//
// Go's regular expressions and PCRE agree on all that policies use; a rule that Go
// cannot compile (a back reference, a look-ahead) is an error that names its line.
// A rule is tried only where its literal beginning fits, and compiled when it is
// tried for the first time: of 6,000 rules a few hundred ever are.
package labels
