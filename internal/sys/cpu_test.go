package sys

import (
	"slices"
	"testing"
)

func TestLevelsOf(t *testing.T) {
	const v2 = "lm cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3"
	const v3 = v2 + " avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"
	for _, c := range []struct {
		flags string
		want  []string
		known bool
	}{
		{v3 + " avx512f avx512bw avx512cd avx512dq avx512vl", []string{"x86-64-v4", "x86-64-v3", "x86-64-v2"}, true},
		{v3, []string{"x86-64-v3", "x86-64-v2"}, true},
		{v2 + " avx avx512f", []string{"x86-64-v2"}, true},
		{"lm sse2", nil, true},
		{"sse2", nil, false},
	} {
		got := levelsOf("processor\t: 0\nflags\t\t: " + c.flags + "\nbugs\t: none\n")
		if !slices.Equal(got, c.want) || (got != nil) != c.known {
			t.Errorf("levelsOf(%s) = %q (known %v); want %q (known %v)", c.flags, got, got != nil, c.want, c.known)
		}
	}
	if got := levelsOf("CPU implementer\t: 0x41\n"); got != nil {
		t.Errorf("levels of another architecture = %q; want none known", got)
	}
}
