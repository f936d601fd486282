package transact

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/liveupd/liveupd/change"
	"github.com/liveupd/liveupd/internal/sys"
)

// A btrfs subvolume that lies in another one is a folder to who walks there, and
// a file system of its own to rename and link: systemd-tmpfiles makes /srv,
// /home and /var/lib/machines so, and snapper /.snapshots. Where an update
// changes something in one, it is a volume of the store like those that are
// mounted, with a .liveupd of its own. The root's names them, one quoted path a
// line, before anything is made there: a recovery in an initrd finds them by that.
const nestedName = "subvolumes"

const maxNested = 1 << 20 // bytes of the list

// openNested adds the volumes that the root's list names and that are still there.
func (s *Store) openNested() error {
	names, err := s.readNested()
	if err != nil {
		return err
	}
	for _, mount := range names {
		if err := s.addNested(mount); err != nil && !notHere(err) {
			return err
		}
	}
	return nil
}

func (s *Store) readNested() ([]string, error) {
	if s.vols[0].home == nil {
		return nil, nil
	}
	f, err := sys.OpenAt(s.vols[0].home, nestedName, sys.OpenRead|sys.OpenNoLink, resolve)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read %s/%s: %w", s.vols[0].homePath(), nestedName, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxNested))
	if err != nil {
		return nil, fmt.Errorf("cannot read %s/%s: %w", s.vols[0].homePath(), nestedName, err)
	}
	var names []string
	for line := range strings.Lines(string(b)) {
		name, err := strconv.Unquote(strings.TrimSuffix(line, "\n"))
		if err != nil || !path.IsAbs(name) || path.Clean(name) != name {
			return nil, fmt.Errorf("cannot read %s/%s: %q is no path", s.vols[0].homePath(), nestedName, line)
		}
		names = append(names, name)
	}
	return names, nil
}

// addNested opens the subvolume at mount as a volume of the store. A folder that
// is no subvolume by now is fs.ErrNotExist.
func (s *Store) addNested(mount string) error {
	mounts := make([]string, len(s.vols))
	for i, v := range s.vols {
		mounts[i] = v.Mount
	}
	in, rel := locate(mounts, mount)
	if rel == "." {
		return nil // it is mounted there by now, or known
	}
	dir, err := sys.OpenAt(s.vols[in].Dir, rel, sys.OpenRead|sys.OpenDir|sys.OpenNoLink, resolve)
	if err != nil {
		return fmt.Errorf("cannot open subvolume %s: %w", mount, err)
	}
	fail := func(err error) error {
		dir.Close()
		return fmt.Errorf("cannot open subvolume %s: %w", mount, err)
	}
	ok, err := sys.OnBtrfs(dir)
	if err == nil && ok {
		ok, err = sys.IsSubvolumeRoot(dir)
	}
	if err != nil {
		return fail(err)
	}
	if !ok {
		return fail(fs.ErrNotExist)
	}
	id, err := sys.FileSystemID(dir, 0)
	if err != nil {
		return fail(err)
	}
	sync, err := sys.OpenAt(dir, ".", sys.OpenRead|sys.OpenDir, resolve)
	if err != nil {
		return fail(err)
	}
	v := &volume{Volume: Volume{Mount: mount, Dir: dir, ID: id}, nested: true, sync: sync}
	s.vols = append(s.vols, v)
	return v.openHome()
}

// nest finds the subvolumes in which the entries of d lie, and makes volumes of
// those that are none yet. One that is read-only refuses the update.
func (t *Tx) nest(d *change.Delta) error {
	seen := map[string]bool{}
	for i := range d.Entries {
		e := &d.Entries[i]
		if checkEntry(e) != nil {
			continue // layOut refuses it
		}
		at := e.Path
		if !e.Old.IsDir() {
			at = path.Dir(at)
		}
		if seen[at] {
			continue
		}
		seen[at] = true
		if err := t.nestAt(at); err != nil {
			return err
		}
	}
	return nil
}

// nestAt adds the subvolumes on the way from the volume that holds the folder dir to dir.
func (t *Tx) nestAt(dir string) error {
	for {
		mounts := make([]string, len(t.vols))
		for i, v := range t.vols {
			mounts[i] = v.mount
		}
		vol, rel := locate(mounts, dir)
		tv := &t.vols[vol]
		if btrfs, err := sys.OnBtrfs(tv.vol.Dir); err != nil || !btrfs || rel == "." {
			return err
		}
		root, err := tv.vol.Dir.Stat()
		if err != nil {
			return err
		}
		found := ""
		parts := strings.Split(rel, "/")
		for i := range parts {
			n, err := sys.LstatPath(tv.vol.Dir, path.Join(parts[:i+1]...))
			if notHere(err) {
				return nil // it is new, from here down
			}
			if err != nil {
				return err
			}
			if n.Dev != root.Dev {
				found = path.Join(tv.mount, path.Join(parts[:i+1]...))
				break
			}
		}
		if found == "" {
			return nil
		}
		if err := t.addNested(found); err != nil {
			return err
		}
	}
}

func (t *Tx) addNested(mount string) error {
	known, err := t.s.readNested()
	if err != nil {
		return err
	}
	if !slices.Contains(known, mount) {
		var list strings.Builder
		for _, name := range append(known, mount) {
			list.WriteString(strconv.Quote(name) + "\n")
		}
		if err := t.s.writeFile(t.s.vols[0].home, nestedName, []byte(list.String())); err != nil {
			return fmt.Errorf("cannot note subvolume %s: %w", mount, err)
		}
	}
	if err := t.s.addNested(mount); err != nil {
		return err
	}
	v := t.s.vols[len(t.s.vols)-1]
	if ro, err := sys.SubvolumeReadOnly(v.Dir); err != nil || ro {
		if err == nil {
			err = change.WithHint(fmt.Errorf("cannot change what lies in subvolume %s: it has the property ro=true: %w", mount, syscall.EROFS),
				"leave it out of the update, or allow it: btrfs property set -ts "+mount+" ro false")
		}
		return err
	}
	t.vols = append(t.vols, txVolume{mount: mount, vol: v})
	return nil
}
