package main

import "github.com/spf13/cobra"

// newPolicyTopic is a help topic: it runs nothing.
func newPolicyTopic() *cobra.Command {
	return &cobra.Command{
		Use:   "policy",
		Short: "how the administrator's rules are written",
		Long: `The administrator says in /etc/liveupd/policy.d/*.toml how units are to be
treated. /run and /usr/lib hold such a folder too; a file in /etc hides the one of the same
name there. The files are read in the order of their names, and the last rule
that applies counts. They come over what a unit asks for itself (X-Liveupd-On-Change=) and
over what liveupd knows of it.

  [[rule]]
  units = ["postgresql@*.service"]
  windows = ["Sat,Sun 02:00-04:30", "Mon..Fri 22:00-05:00"]
  reason = "the shop is open in the day"

  [[rule]]
  paths = ["/usr/lib/x86_64-linux-gnu/libcurl*", "/opt/app/"]
  action = "ignore"

units, packages: names, or patterns with * ? [a-z]; packages are those that own the path
which changes. paths: the same, or a folder with a slash at its end for all below it. Of
several of these lists each has to match.

action is one of
  restart  also where a reload would do, or where liveupd would put it off
  reload   in place of a restart; put off where the unit has no reload
  defer    put off: told, and done by a person or by liveupd restart
  never    the same, and no other unit's restart takes it along
  ignore   no reason to do anything

windows are the local times at which the units may be interrupted; outside of them it is
put off. What is put off stays in liveupd status until it is done.

A mistake in a file ends every verb that would interrupt something, with file, line and
column, before anything is done.
` + exitHelp,
	}
}
