package sys

import (
	"os"
	"strings"
)

// cpuLevels are the flags of /proc/cpuinfo that stand for a level of the
// x86-64 psABI, as glibc asks for them (sysdeps/x86_64/dl-hwcaps-subdirs.c).
var cpuLevels = []struct{ level, flags string }{
	{"x86-64-v2", "cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3"},
	{"x86-64-v3", "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"},
	{"x86-64-v4", "avx512f avx512bw avx512cd avx512dq avx512vl"},
}

// CPULevels lists the subfolders of glibc-hwcaps that this machine's processor
// can run, best first; nil where that is not known (another architecture, no
// /proc), empty where it can run none.
func CPULevels() []string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return nil
	}
	return levelsOf(string(b))
}

func levelsOf(cpuinfo string) []string {
	_, rest, ok := strings.Cut(cpuinfo, "\nflags")
	if !ok {
		return nil
	}
	line, _, _ := strings.Cut(rest, "\n")
	_, line, _ = strings.Cut(line, ":")
	has := map[string]bool{}
	for f := range strings.FieldsSeq(line) {
		has[f] = true
	}
	if !has["lm"] {
		return nil
	}
	levels := []string{}
	for _, l := range cpuLevels {
		for f := range strings.FieldsSeq(l.flags) {
			if !has[f] {
				return levels
			}
		}
		levels = append([]string{l.level}, levels...)
	}
	return levels
}
