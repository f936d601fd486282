package rootfs

import (
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/liveupd/liveupd/change"
)

// User is whose manager reads the units of a load.
type User struct {
	UID, GID uint32
	Groups   []uint32 // further ones
	Name     string
	Home     string // without symbolic links
	Runtime  string // /run/user/UID
}

// loadPath is the load path of a user's manager, highest first (systemd.unit(5),
// "User Unit Search Path"), with the defaults of the XDG variables: what the
// user sets them to is known to that manager alone.
func (u *User) loadPath() []string {
	var out []string
	home := func(dirs ...string) {
		for _, d := range dirs {
			if u.Home != "" {
				out = append(out, u.Home+d)
			}
		}
	}
	run := func(dirs ...string) {
		for _, d := range dirs {
			out = append(out, u.Runtime+"/systemd/"+d)
		}
	}
	home("/.config/systemd/user.control")
	run("user.control", "transient", "generator.early")
	home("/.config/systemd/user", "/.config/systemd/user.attached")
	out = append(out, "/etc/xdg/systemd/user", "/etc/systemd/user")
	run("user", "user.attached")
	out = append(out, "/run/systemd/user")
	run("generator")
	home("/.local/share/systemd/user")
	out = append(out,
		"/usr/local/share/systemd/user", "/usr/share/systemd/user",
		"/usr/local/lib/systemd/user", "/usr/lib/systemd/user", "/lib/systemd/user")
	run("generator.late")
	return out
}

// own tells whether a file is the user's to write, by where it lies.
func (u *User) own(file string) bool {
	return u.Home != "" && under(file, u.Home) || under(file, u.Runtime)
}

func under(p, dir string) bool { return strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/") }

// settings puts in what the specifiers mean that differ between the system's
// manager and a user's, and drops what a user cannot ask root to look at.
func (u *User) settings(in []change.Setting) []change.Setting {
	out := make([]change.Setting, 0, len(in))
	for _, s := range in {
		if s.Key == "X-Liveupd-Watch" && u.own(s.File) {
			continue // a pattern without an end
		}
		s.Value = u.expand(s.Value)
		out = append(out, s)
	}
	return out
}

// expand leaves all other specifiers as they stand.
func (u *User) expand(s string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		i++
		v, ok := u.specifier(s[i])
		if !ok {
			b.WriteString(s[i-1 : i+1])
			continue
		}
		b.WriteString(strings.ReplaceAll(v, "%", "%%"))
	}
	return b.String()
}

func (u *User) specifier(c byte) (string, bool) {
	switch c {
	case 't':
		return u.Runtime, true
	case 'h':
		return u.Home, u.Home != ""
	case 'S':
		return u.Home + "/.local/state", u.Home != ""
	case 'L':
		return u.Home + "/.local/state/log", u.Home != ""
	case 'C':
		return u.Home + "/.cache", u.Home != ""
	case 'E':
		return u.Home + "/.config", u.Home != ""
	case 'u':
		return u.Name, u.Name != ""
	case 'U':
		return strconv.FormatUint(uint64(u.UID), 10), true
	case 'G':
		return strconv.FormatUint(uint64(u.GID), 10), true
	case 'g', 's', 'd':
		return "", false
	}
	return "", false
}

// asUser is a layer that shows just what a user could see and read, by owner, group
// and mode: what links to /etc/shadow is as absent for us as for its user.
// An access control list that permits more is not asked.
type asUser struct {
	t *tree
	u *User
}

// may tells whether the user has a right: 4 to read, 1 to search.
func (l *asUser) may(n *change.Node, right uint32) bool {
	switch {
	case l.u.UID == 0:
		return true
	case n.UID == l.u.UID:
		return n.Mode>>6&right != 0
	case n.GID == l.u.GID || slices.Contains(l.u.Groups, n.GID):
		return n.Mode>>3&right != 0
	}
	return n.Mode&right != 0
}

// reach looks whether the user can come to a path.
func (l *asUser) reach(real string) error {
	for dir := path.Dir(real); real != "/"; dir = path.Dir(dir) {
		n, err := l.t.stat(dir)
		if err != nil {
			return err
		}
		if n.IsDir() && !l.may(n, 1) {
			return &fs.PathError{Op: "search", Path: dir, Err: fmt.Errorf("%w for user %d", syscall.EACCES, l.u.UID)}
		}
		if dir == "/" {
			break
		}
	}
	return nil
}

func (l *asUser) read(real string) error {
	if err := l.reach(real); err != nil {
		return err
	}
	n, err := l.t.stat(real)
	if err != nil {
		return err
	}
	if !l.may(n, 4) {
		return &fs.PathError{Op: "open", Path: real, Err: fmt.Errorf("%w for user %d", syscall.EACCES, l.u.UID)}
	}
	return nil
}

func (l *asUser) lstat(real string) (*change.Node, error) {
	if err := l.reach(real); err != nil {
		return nil, err
	}
	return l.t.stat(real)
}

func (l *asUser) readDir(real string) ([]string, error) {
	if err := l.read(real); err != nil {
		return nil, err
	}
	return l.t.readDir(real)
}

func (l *asUser) open(real string) (File, error) {
	if err := l.read(real); err != nil {
		return nil, err
	}
	return l.t.open(real)
}
