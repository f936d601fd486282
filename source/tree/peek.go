package tree

import (
	"cmp"

	"github.com/liveupd/liveupd/internal/sys"
)

// IsWhole tells whether what lies below root is a whole system: it holds usr/ and an
// os-release.
func IsWhole(root *sys.FD) (bool, error) {
	t := &Tree{root: root, name: cmp.Or(root.Name(), "the tree")}
	return t.isWhole()
}
