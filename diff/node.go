package diff

import (
	"bytes"
	"maps"
	"strings"

	"github.com/liveupd/liveupd/change"
)

// difference tells in which ways l differs from s, the source's, but for hard
// links. Digests decide where both are set and the nodes are not one object.
// Where content or type differ, the mtime is not told.
func difference(s, l *change.Node) change.Aspect {
	if s.Type != l.Type {
		return change.AspectType
	}
	var a change.Aspect
	switch s.Type {
	case change.Regular:
		same := s.Size == l.Size && (s.Digest == l.Digest || s.Dev == l.Dev && s.Ino == l.Ino && s.Ino != 0)
		if !same {
			a |= change.AspectContent
		}
	case change.Symlink:
		if s.Target != l.Target {
			a |= change.AspectContent
		}
	case change.CharDevice, change.BlockDevice:
		if s.Rdev != l.Rdev {
			a |= change.AspectContent
		}
	}
	if s.Mode != l.Mode && s.Type != change.Symlink {
		a |= change.AspectMode
	}
	if s.UID != l.UID || s.GID != l.GID {
		a |= change.AspectOwner
	}
	a |= xattrDifference(s, l)
	if !sameTime(s.MtimeNS, l.MtimeNS) && s.Type != change.Directory && a&change.AspectContent == 0 {
		a |= change.AspectMtime
	}
	return a
}

// sameTime compares modification times. A live one without a fraction may be all that
// its file system keeps, as ext4's with the small inodes of old disks.
func sameTime(source, live int64) bool {
	const second = 1_000_000_000
	return source == live || live%second == 0 && source-live > 0 && source-live < second
}

// xattrDifference compares extended attributes. Those that belong to the
// machine rather than to what is installed count only where the source has them.
func xattrDifference(s, l *change.Node) change.Aspect {
	var a change.Aspect
	for key, val := range s.Xattrs {
		if other, ok := l.Xattrs[key]; !ok || !bytes.Equal(val, other) {
			a |= xattrAspect(key)
		}
	}
	for key := range l.Xattrs {
		if _, ok := s.Xattrs[key]; !ok && !machines(key) {
			a |= xattrAspect(key)
		}
	}
	return a
}

func xattrAspect(key string) change.Aspect {
	switch key {
	case "security.capability":
		return change.AspectCapability
	case "system.posix_acl_access", "system.posix_acl_default":
		return change.AspectACL
	}
	return change.AspectXattr
}

// isLabel tells the attributes of security modules that say what an object
// is, by its place: a new object at that place has them, too.
func isLabel(key string) bool {
	return key == "security.selinux" || key == "security.apparmor" || strings.HasPrefix(key, "security.SMACK64")
}

// unlabel takes SELinux's label from a node of the source, where it is not to count.
func (c *comparison) unlabel(n *change.Node) {
	const selinux = "security.selinux"
	if _, ok := n.Xattrs[selinux]; !ok || !c.o.IgnoreLabels || c.signed {
		return
	}
	n.Xattrs = maps.Clone(n.Xattrs) // the map may be the index's
	if delete(n.Xattrs, selinux); len(n.Xattrs) == 0 {
		n.Xattrs = nil
	}
}

// machines tells the attributes that a machine gives to what is installed on it:
// labels, measurements of content (IMA) and metadata (EVM), overlay's notes
// and our own.
func machines(key string) bool {
	return isLabel(key) || key == "security.ima" || key == "security.evm" ||
		strings.HasPrefix(key, "trusted.overlay.") || strings.HasPrefix(key, "user.liveupd")
}

// installed is the source's node as it will be in the root. The labels of
// what it replaces stay where the source has none of its own, and so does, for
// a change in place, all that the machine added. SELinux's label of a new object
// is given when it is staged: the root has rules for it.
func installed(s, l *change.Node, op change.Op) *change.Node {
	n := clone(s)
	if l == nil {
		return n
	}
	copied := false
	for key, val := range l.Xattrs {
		if _, ok := s.Xattrs[key]; ok || !isLabel(key) && (op != change.Metadata || !machines(key)) {
			continue
		}
		if key == "security.selinux" && op != change.Metadata {
			continue
		}
		if !copied {
			// The map may be the index's.
			n.Xattrs = make(map[string][]byte, len(s.Xattrs)+1)
			maps.Copy(n.Xattrs, s.Xattrs)
			copied = true
		}
		n.Xattrs[key] = val
	}
	return n
}
