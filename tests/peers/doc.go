// Package peers puts liveupd beside needrestart, checkrestart and systemd's own
// NeedDaemonReload: the same machine, the same change on disk, and what each says
// of it. It writes the table of docs/planner.md.
package peers
