// Package writable answers who owns a path: the update, the machine, or both. It
// is the most dangerous question of all: a wrong answer erases a server.
// Everything here is a pure function of the path, of what lies there (old), of
// what the update ships (new) and of the recorded base: what the last
// committed update shipped there.
//
// A tree is whole when it holds usr/ and an os-release: it is a system. Any other is
// partial: it lists what it brings. A path is asked about where it lands: an
// entry below a symlink to a folder of the live root by its place in the
// target, so that lib/x of a merged-/usr root is asked about as /usr/lib/x.
//
// # The class of a path
//
// The first line that fits decides.
//
//  1. Never, whatever the source and its manifest say: /home /root /mnt
//     /media /proc /sys /dev /run /tmp and what is below; machine-id, SSH host
//     keys, fstab, shadow and gshadow with their backups; the machine's secrets in
//     /var (dbus's machine-id, systemd's random seed and credential secret);
//     .liveupd and lost+found at any depth.
//  2. Never: what the manifest lists as never.
//  3. Listed: the modules of the running kernel. It loads them from there, so
//     they are never removed.
//  4. Whole: what the manifest owns and what is below; /usr/local only where
//     the manifest names it or what is below it, not by owning /usr.
//  5. Add-only: for a partial tree, the folders that each system shares (/usr, /usr/lib,
//     /opt, ...). They are only the way to what it lists, and keep their own
//     owner and mode. And /opt, /srv and /usr/local where the manifest owns something
//     below them: the way there is made where it is missing.
//  6. Never for a whole tree: /opt /srv /usr/local and what is below. A partial
//     tree that ships /opt/app lists it on purpose: there it is Listed.
//  7. Three-way: /etc.
//  8. Add-only: /var, /boot, and /efi, which is another name of /boot.
//  9. A whole tree whose manifest owns nothing by name: Whole for /usr and for
//     the merged-/usr links /lib32 /libo32 /libx32; Listed for /bin /sbin /lib
//     /lib64, because each program's loader is reached through them: a tree of usr/
//     alone must not take them away. A manifest with owns says what the
//     update owns; then all of these are Listed.
//  10. A whole tree: Listed for what lies below those links where they are
//     real folders; Add-only for any other path (/data, /swapfile, /nix): that a
//     system image ships such a path does not make the machine's its own.
//  11. A partial tree: Listed.
//
// # The decision
//
//   - Never: the machine's stays, what is missing stays missing.
//   - Add-only: what is missing is added, what is there stays.
//   - Listed: what is shipped is taken, nothing is removed.
//   - Whole: what is shipped is taken, what is not is removed. A folder goes
//     only when all that it holds is owned, too: whoever walks the tree asks for
//     each path in it.
//   - Three-way: see below.
//
// # The rule of /etc
//
// A path is changed by the machine where type, content, target, device, mode, owner or
// an extended attribute differs from the recorded base. A modification time alone, or a security
// label that the machine gave, is no change.
//
//	machine          update                       then
//	absent           new, no base                 added
//	absent, base     same as the base             stays away: a removal is a change too
//	absent, base     a newer one                  beside as NAME.liveupd-new, warning
//	equals new       -                            nothing to tell
//	no base          differs                      replaced, warning; the generation keeps the old copy
//	equals base      differs                      replaced
//	changed          differs                      stays, the new one beside as NAME.liveupd-new
//	equals base      gone, from a whole tree      removed
//	changed          gone, from a whole tree      stays, with a reason
//	no base          does not ship it             stays
//
// A folder has no content to lay beside: where the machine changed its owner or mode,
// those stay; where the machine has something else in a folder's place, or has
// removed the folder, that stays, and nothing below it is taken. A folder of which no base is known is never
// replaced by something else: what it holds may be the machine's.
//
// A partial tree never asks for a removal: the base holds what whole trees
// shipped before it, of which it knows nothing.
//
// # Protection that goes beyond that rule
//
// A whole tree ships /etc/passwd, group, subuid, subgid, hostname, hosts and
// resolv.conf because every root has them, not because this machine should get
// them; and shadow, their other half, is never replaced. Where no base is known and the
// machine's differ, they stay, the new ones are laid beside, and the plan warns.
// A partial tree that lists one of them does so on purpose and gets the rule above.
package writable
