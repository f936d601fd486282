package rootfs

import (
	"bufio"
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/liveupd/liveupd/change"
)

// scriptsOf lists this machine's own programs that an interpreter runs.
func scriptsOf(t *testing.T, interpreter string) []string {
	t.Helper()
	var out []string
	for _, dir := range []string{"/usr/bin", "/usr/sbin"} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			p := filepath.Join(dir, e.Name())
			f, err := os.Open(p)
			if err != nil || e.Type()&os.ModeSymlink != 0 {
				continue
			}
			line, _ := bufio.NewReader(f).ReadString('\n')
			f.Close()
			if strings.HasPrefix(line, "#!") && strings.Contains(line, interpreter) {
				out = append(out, p)
			}
		}
	}
	return out
}

// usesHere are the paths that a command of a service would use on this machine.
func usesHere(r *reader, program string, args ...string) map[string]bool {
	c := &collector{u: &change.Unit{Name: "x.service"}, env: map[string]string{}, workDir: "/", seen: map[[2]string]bool{}, in: r}
	c.host = c.in
	c.program(program, args, "exec", "unit")
	used := map[string]bool{}
	for _, u := range c.out {
		used[u.Path] = true
	}
	return used
}

// What Perl has loaded when it has compiled a program is among what we find.
func TestModulesAgainstPerl(t *testing.T) {
	const perl = "/usr/bin/perl"
	if _, err := os.Stat(perl); err != nil {
		t.Skip("no system Perl here to compare with")
	}
	dir := t.TempDir()
	// CHECK blocks run in reverse order: the first one sees all that was loaded.
	dump := "package LiveupdDump;\nCHECK { print STDOUT map { \"INC $_\\n\" } values %INC; print STDOUT map { \"INC $_\\n\" } @DynaLoader::dl_shared_objects }\n1;\n"
	if err := os.WriteFile(filepath.Join(dir, "LiveupdDump.pm"), []byte(dump), 0o644); err != nil {
		t.Fatal(err)
	}
	r := newReader(asTree(Dir(openDir(t, "/"))), &warnings{})
	scripts := scriptsOf(t, "perl")
	limit := 25
	if os.Getenv("LIVEUPD_LONG") != "" {
		limit = len(scripts)
	}
	step := max(1, len(scripts)/max(limit, 1))
	compared, modules, named := 0, 0, 0
	for i := 0; i < len(scripts); i += step {
		script := scripts[i]
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		cmd := exec.CommandContext(ctx, perl, "-I"+dir, "-MLiveupdDump", "-c", script)
		cmd.Env = []string{"HOME=/nonexistent", "PATH=/usr/bin:/bin"}
		cmd.Dir = "/"
		cmd.WaitDelay = time.Second
		var out bytes.Buffer
		cmd.Stdout = &out
		err := cmd.Run()
		cancel()
		if err != nil {
			continue // it wants more than this machine has, or a BEGIN block that does not end
		}
		used := usesHere(r, script)
		compared++
		named += len(used)
		for line := range strings.Lines(out.String()) {
			p, ok := strings.CutPrefix(strings.TrimSpace(line), "INC ")
			if !ok || strings.HasPrefix(p, dir) || !strings.HasPrefix(p, "/") {
				continue
			}
			real, err := filepath.EvalSymlinks(p)
			if err != nil {
				continue
			}
			modules++
			// Dpkg::Vendor makes a module's name of what /etc/dpkg/origins says: as
			// any plugin that data names, it is for X-Liveupd-Watch=.
			if !used[real] && !strings.Contains(p, "/Dpkg/Vendor/") {
				t.Errorf("%s loads %s, which we do not find", script, p)
			}
		}
	}
	if compared < min(5, len(scripts)) {
		t.Errorf("only %d of %d programs were compared", compared, len(scripts))
	}
	t.Logf("%d programs, %d modules that they load, %d paths that we name", compared, modules, named)
}
