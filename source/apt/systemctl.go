package apt

import (
	"maps"
	"slices"
	"strings"
)

// recordUnits is what the machine's units are, a line "NAME STATE" each; what a script has asked for
// is written behind, for what it asks next. "-" is the machine as a whole.
const recordUnits = RunDir + "/units"

// systemctl stands before systemctl(1), which in the sandbox reaches no PID 1: --now then fails, is-active
// says yes to everything. What acts on units is noted as for policy-rc.d; questions are answered from the
// machine's own units; what changes files the real one does. Of other managers and roots it knows nothing.
const systemctl = `#!/bin/sh
units=UNITS record=RECORD
real() { PATH=${PATH#*:}; exec systemctl "$@"; }
[ -r $units ] || real "$@"
for arg; do
	case $arg in --user | --global | --root* | --image* | --host* | --machine* | -H* | -M* | --help | -h | --version) real "$@" ;; esac
done
verb= names= now= quiet= value=
for arg; do
	shift
	if [ -n "$value" ]; then value=; set -- "$@" "$arg"; continue; fi
	case $arg in
	--now) now=yes; continue ;;
	-q | --quiet) quiet=yes ;;
	-t | -p | -n | -o | -s | -P | --type | --state | --property | --signal | --kill-whom | --kill-who | --lines | --output | --job-mode | --what | --message | --preset-mode) value=yes ;;
	-*) ;;
	*)
		if [ -z "$verb" ]; then verb=$arg; else
			name=$arg
			case $name in *.service | *.socket | *.timer | *.path | *.mount | *.automount | *.swap | *.target | *.slice | *.scope | *.device) ;; *) name=$name.service ;; esac
			names="$names ${name##*/}"
		fi ;;
	esac
	set -- "$@" "$arg"
done
state() {
	was=
	while read -r name is; do [ "$name" != "$1" ] || was=$is; done <$units
	printf '%s\n' "${was:-inactive}"
}
ask() {
	for name in $names; do
		printf '%s %s\n' "$name" "$1" >>$record
		case $1 in
		start | restart | reload-or-restart) printf '%s active\n' "$name" >>$units ;;
		stop) printf '%s inactive\n' "$name" >>$units ;;
		esac
	done
}
set -f
case $verb in
start | stop | restart | try-restart | reload | reload-or-restart | try-reload-or-restart | condrestart | force-reload | kill | isolate)
	ask "$verb" ;;
is-active | status)
	rc=3
	for name in $names; do
		was=$(state "$name")
		[ -n "$quiet" ] || printf '%s\n' "$was"
		case $was in active | reloading | refreshing) rc=0 ;; esac
	done
	exit $rc ;;
is-failed)
	rc=1
	for name in $names; do
		was=$(state "$name")
		[ -n "$quiet" ] || printf '%s\n' "$was"
		[ "$was" != failed ] || rc=0
	done
	exit $rc ;;
is-system-running)
	was=$(state -)
	[ -n "$quiet" ] || printf '%s\n' "$was"
	[ "$was" = running ] ;;
enable | reenable | disable | mask)
	if [ -z "$now" ]; then real "$@"; fi
	(real "$@") || exit
	case $verb in enable) ask start ;; reenable) ask restart ;; *) ask stop ;; esac ;;
*) real "$@" ;;
esac
`

// Units gives the file from which systemctl answers: states by name, none on a root that does not
// run. Where the file is missing the real systemctl does all.
func Units(states map[string]string) map[string]string {
	machine := "running"
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(states)) {
		if states[name] == "failed" {
			machine = "degraded"
		}
		b.WriteString(name + " " + states[name] + "\n")
	}
	return map[string]string{recordUnits: "- " + machine + "\n" + b.String()}
}

// Systemctl gives the program and its file of units, for a sandbox that has no others of Stubs: it lies in
// BinDir, and what it noted is read with Read.
func Systemctl(states map[string]string) map[string]string {
	out := Units(states)
	out[BinDir+"/systemctl"] = systemctlStub()
	return out
}

func systemctlStub() string {
	return strings.NewReplacer("UNITS", recordUnits, "RECORD", recordPolicy).Replace(systemctl)
}

// Stopped are the units that the scripts asked to be stopped and not to be started again.
func (r *Recorded) Stopped() []string {
	last := map[string]string{}
	for _, line := range r.Actions {
		name, action, ok := strings.Cut(line, " ")
		if !ok {
			continue
		}
		if !strings.Contains(name, ".") {
			name += ".service"
		}
		last[name], _, _ = strings.Cut(action, " ")
	}
	maps.DeleteFunc(last, func(_, action string) bool { return action != "stop" })
	return slices.Sorted(maps.Keys(last))
}
