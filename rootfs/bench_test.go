package rootfs

import (
	"context"
	"testing"

	"github.com/liveupd/liveupd/change"
)

// BenchmarkLoad reads this machine's own tree, with the uses of all services
// that a boot reaches, as a plan for a root does.
func BenchmarkLoad(b *testing.B) {
	root := openDir(b, "/")
	var tree *change.Tree
	for b.Loop() {
		var err error
		if tree, err = Load(context.Background(), Dir(root), LoadOptions{Static: true}); err != nil {
			b.Fatal(err)
		}
	}
	uses := 0
	for _, u := range tree.Units {
		uses += len(u.Uses)
	}
	b.ReportMetric(float64(len(tree.Units)), "units")
	b.ReportMetric(float64(uses), "uses")
}

// Loading ends when it is told to.
func TestLoadEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Load(ctx, Dir(openDir(t, "/")), LoadOptions{Static: true}); err == nil {
		t.Error("Load with an ended context succeeded")
	}
}
