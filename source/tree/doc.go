// Package tree is the source SPEC "tree:DIR": a directory that holds the files
// of an update at the paths where they go (DIR/usr/lib/x becomes /usr/lib/x).
//
// # The three files that describe a tree
//
// None of them is part of the update itself.
//
//	liveupd.toml               optional: name, version, sequence, bootme, tree, owns, never
//	liveupd.manifest           the manifest of digests: what each path of the tree is
//	liveupd.manifest.minisig   its minisign signature
//
// Each is looked for in three places, and stands in one of them only; two at
// once are refused, because either could be meant:
//
//  1. inside: DIR/liveupd.toml;
//  2. beside, by the tree's name: DIR.liveupd.toml (for /srv/v2 that is
//     /srv/v2.liveupd.toml);
//  3. beside: liveupd.toml in the folder that holds DIR. Where it has a key
//     tree = "NAME", it counts for the DIR of that name only, and is passed
//     over for others.
//
// A file beside is taken from its owner only: root, the caller or the owner of
// DIR. Who may merely write into the folder above (/tmp) decides nothing. The
// signature stands beside its manifest, at the manifest's name with .minisig.
//
// # What Open does, and what holds after each step
//
//  1. Opens DIR. All later reads go through that descriptor: a DIR that is
//     renamed or replaced meanwhile changes nothing.
//  2. Refuses a DIR that is empty, or that holds .liveupd (the store of a
//     root that liveupd updates: it is a live root, not an update).
//  3. Reads the manifest of digests and its signature, and checks the
//     signature against every *.pub in the key folder. Not one byte of the
//     manifest has been parsed until then. A signature that no key confirms
//     refuses the update, with --allow-unsigned too: it was signed, and is not
//     what was signed. After this step the list of digests is authentic.
//  4. Reads liveupd.toml. In a signed tree its digest, or its absence, is part
//     of the manifest.
//  5. Without a signature the tree is unsigned: refused unless allowed. A
//     manifest without a signature is not used at all, and a warning says so.
//
// Contents are not read here. The manifest's digests travel with the nodes
// that Claim gives, and staging compares them with what it has really copied:
// one read of each file, and no moment between a check and its use. Check
// compares owner, mode, size, type, target and extended attributes at the
// moment when the walk sees the object. Finish refuses a tree in which a
// listed path was never seen. So nothing reaches the root that is not in the
// manifest, and nothing of the manifest is missing.
//
// Modification times are not signed: they do not survive each way of moving
// a tree, and a wrong one changes no content. Nor are the extended attributes
// that belong to the machine that unpacked the tree rather than to the tree:
// security.selinux, security.ima, security.evm and trusted.overlay.*.
package tree
