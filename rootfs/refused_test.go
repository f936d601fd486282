package rootfs

import (
	"strings"
	"testing"
)

// What the manager would not load, as far as the files tell. tests/jobs asks it itself.
func TestRefused(t *testing.T) {
	const run = "[Service]\nExecStart=/bin/a\n"
	fs := files{
		"etc/systemd/system/dropped.service.d/a.conf": "[Service]\nNice=1\n[Serv\nNice=2\n",
		"etc/systemd/system/dropped.service":          run,
		"etc/systemd/system/circle1.service":          "-> circle2.service",
		"etc/systemd/system/circle2.service":          "-> circle1.service",
	}
	cases := map[string]struct {
		text string
		want bool
	}{
		"plain.service":      {run, false},
		"nothing.service":    {"[Service]\nNice=3\n", true},
		"stops.service":      {"[Service]\nExecStop=/bin/a\nRemainAfterExit=yes\n", false},
		"action.service":     {"[Unit]\nSuccessAction=reboot\n[Service]\nType=oneshot\n", false},
		"simple.service":     {"[Service]\nType=simple\nExecStop=/bin/a\n", true},
		"two.service":        {run + "ExecStart=/bin/b\n", true},
		"reset.service":      {run + "ExecStart=\nExecStart=/bin/b\n", false},
		"once.service":       {"[Service]\nType=oneshot\nExecStart=/bin/a\nExecStart=/bin/b\n", false},
		"again.service":      {"[Service]\nType=oneshot\nRestart=always\nExecStart=/bin/a\n", true},
		"dbus.service":       {"[Service]\nType=dbus\nExecStart=/bin/a\n", true},
		"named.service":      {"[Service]\nType=dbus\nBusName=a.b\nExecStart=/bin/a\n", false},
		"relative.service":   {"[Service]\nExecStart=./a b\n", true},
		"maybe.service":      {run + "ExecStartPre=-./a b\n", false},
		"post.service":       {run + "ExecStop=@bin/a b\n", true},
		"bare.service":       {"[Service]\nExecStart=sleep infinity\n", false},
		"specifier.service":  {"[Service]\nExecStart=%t/a\n", false},
		"search.service":     {run + "ExecSearchPath=a/b\n", false},
		"open.service":       {run + "[Unit\n", true},
		"listens.socket":     {"[Socket]\nListenFIFO=/a\n", false},
		"deaf.socket":        {"[Socket]\nSocketMode=0600\n", true},
		"accepts.socket":     {"[Socket]\nListenStream=1\nAccept=yes\nService=a.service\n", true},
		"never.timer":        {"[Timer]\nUnit=a.service\n", true},
		"daily.timer":        {"[Timer]\nOnCalendar=daily\n", false},
		"blind.path":         {"[Path]\nMakeDirectory=yes\n", true},
		"watches.path":       {"[Path]\nDirectoryNotEmpty=/a\n", false},
		"template@.service":  {"[Service]\nNice=1\n", false},
		"template@a.service": {"[Service]\nNice=1\n", true},
		"some.target":        {"[Unit]\nWants=a.service\n", false},
	}
	for name, c := range cases {
		fs["etc/systemd/system/"+name] = c.text
	}
	tree := load(t, viewOf(t, fs), LoadOptions{})
	for name, c := range cases {
		u := tree.Units[name]
		if u == nil || (u.Refused != "") != c.want {
			t.Errorf("%s: %+v; want refused: %v", name, u, c.want)
		}
	}
	if u := tree.Units["dropped.service"]; u.Refused != "" || value(u, "Service", "Nice") != "1" {
		t.Errorf("a drop-in is read up to the section that is not closed: %+v", u)
	}
	for _, w := range tree.Warnings {
		if strings.Contains(w, "file :") {
			t.Errorf("two names of each other: %q", w)
		}
	}
}
