package rootfs

import "testing"

func TestUnmet(t *testing.T) {
	cases := map[string]int{ // conditions, and how many of them do not hold
		"ConditionPathExists=/etc/file":                                 0,
		"ConditionPathExists=/etc/link":                                 0,
		"ConditionPathExists=/etc/dangling":                             1,
		"ConditionPathExists=!/etc/file":                                1,
		"ConditionPathExists=!/etc/none":                                0,
		"AssertPathExists=/usr/none":                                    1,
		"ConditionPathIsDirectory=/etc/file":                            1,
		"ConditionPathIsDirectory=/etc/full/":                           0,
		"ConditionFileNotEmpty=/etc/empty":                              1,
		"ConditionFileNotEmpty=/etc/file":                               0,
		"ConditionFileIsExecutable=/etc/file":                           0,
		"ConditionDirectoryNotEmpty=/etc/hollow":                        1,
		"ConditionDirectoryNotEmpty=!/etc/full":                         1,
		"ConditionDirectoryNotEmpty=/etc/full":                          0,
		"ConditionPathExists=|/etc/none":                                0,
		"ConditionPathExists=|!/etc/file":                               0,
		"ConditionPathExists=/run/none":                                 0,
		"ConditionPathExists=/var/lib/none":                             0,
		"ConditionPathExists=/etc/%p":                                   0,
		"ConditionPathExistsGlob=/etc/none*":                            0,
		"ConditionPathExists=/etc/none\nConditionPathExists=":           0,
		"ConditionPathExists=/etc/none\nConditionPathExists=!/etc/file": 2,
	}
	for text, want := range cases {
		tree := load(t, viewOf(t, files{
			"etc/file": "x", "etc/link": "-> file", "etc/dangling": "-> none", "etc/empty": "", "etc/full/x": "", "etc/hollow/": "",
			unitDir + "x.service": "[Unit]\n" + text + "\n[Service]\nExecStart=/a\n",
		}), LoadOptions{})
		if got := tree.Units["x.service"].Unmet; len(got) != want {
			t.Errorf("%q: unmet are %v; want %d", text, got, want)
		}
	}
}
