package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == frameVerb {
		os.Exit(frame(os.Args[2], os.Args[3:]))
	}
	os.Exit(m.Run())
}

func TestMedianAndTable(t *testing.T) {
	tests := []struct {
		samples []float64
		want    float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 2, 9}, 3}}
	for _, c := range tests {
		if got := (row{Samples: c.samples}).median(); got != c.want {
			t.Errorf("median(%v) = %v; want %v", c.samples, got, c.want)
		}
	}
	got := table("here", []row{{What: "x", Contender: "cp", Unit: "ms", Samples: []float64{1, 3, 2}, Ratio: 1.5}})
	if !strings.HasSuffix(got, "| x | cp | 2.0 ms | 1.0 | 3.0 | 1.50 times that |\n") {
		t.Errorf("table = %q", got)
	}
}

func TestTreesDifferByGenerationOnly(t *testing.T) {
	one, two := filepath.Join(t.TempDir(), "1"), filepath.Join(t.TempDir(), "2")
	for generation, dir := range []string{one, two} {
		if err := makeTree(dir, 120, 120*500, uint64(generation)+1); err != nil {
			t.Fatal(err)
		}
	}
	if err := sameFiles(one, one); err != nil {
		t.Error(err)
	}
	if err := sameFiles(one, two); err == nil {
		t.Error("two generations are equal")
	}
	again := filepath.Join(t.TempDir(), "again")
	if err := makeTree(again, 120, 120*500, 1); err != nil {
		t.Fatal(err)
	}
	if err := sameFiles(one, again); err != nil {
		t.Errorf("the same generation differs: %v", err)
	}
}

func TestTimed(t *testing.T) {
	b := &bench{ctx: t.Context(), dir: t.TempDir()}
	s, err := b.timed("sh", "-c", "sleep 0.05; echo out")
	if err != nil || string(s.out) != "out\n" || s.MS < 50 || s.PeakMB <= 0 || s.PeakMB > 30 {
		t.Errorf("timed = %+v, %v; want 50 ms and more, a few MB", s, err)
	}
	if _, err := b.timed("sh", "-c", "echo why >&2; exit 3"); err == nil || !strings.Contains(err.Error(), "why") {
		t.Errorf("timed of a command that fails = %v; want its words", err)
	}
}

func TestReadsReports(t *testing.T) {
	if got, err := swapWindow([]byte("{\"message_type\":\"progress\"}\n{\"message_type\":\"report\",\"result\":\"done\",\"swap_usec\":1500}\n")); got != 1.5 || err != nil {
		t.Errorf("swapWindow = %v, %v; want 1.5", got, err)
	}
	for _, out := range []string{"", "{\"message_type\":\"report\",\"result\":\"failed\",\"swap_usec\":1}\n"} {
		if _, err := swapWindow([]byte(out)); err == nil {
			t.Errorf("swapWindow(%q) takes it", out)
		}
	}
	if err := nothingToDo([]byte("{\"message_type\":\"plan\",\"changes\":{}}\n")); err != nil {
		t.Error(err)
	}
	if nothingToDo([]byte("{\"message_type\":\"plan\",\"changes\":{\"replaced\":1}}\n")) == nil || nothingToDo(nil) == nil {
		t.Error("nothingToDo takes a plan with something to do, or none")
	}
}

func TestAllChecked(t *testing.T) {
	for out, ok := range map[string]bool{
		`{"message_type":"report","checked":3}`: true, `{"message_type":"report","checked":2}`: false,
		`{"message_type":"report","checked":3,"damaged":1}`: false, "": false,
	} {
		if err := allChecked([]byte(out+"\n"), 3); (err == nil) != ok {
			t.Errorf("allChecked(%q) = %v", out, err)
		}
	}
}
