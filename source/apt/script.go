package apt

import (
	"fmt"
	"strings"
)

// Options say what apt is to do; the words are apt's own.
type Options struct {
	Full         bool     `json:"full,omitempty"`          // dist-upgrade, not upgrade --with-new-pkgs
	OnlySecurity bool     `json:"only_security,omitempty"` // from the archives of security updates only
	Unattended   bool     `json:"unattended,omitempty"`    // from the origins of unattended-upgrades only, where it is configured
	NoRefresh    bool     `json:"no_refresh,omitempty"`    // with the package lists that are there
	AutoRemove   bool     `json:"autoremove,omitempty"`
	Hold         []string `json:"hold,omitempty"`
	Packages     []string `json:"packages,omitempty"`   // apt-get install's arguments: NAME, NAME=VERSION, NAME/SUITE, NAME-
	Debs         []string `json:"debs,omitempty"`       // files, by their paths on the host
	LiveAfter    bool     `json:"live_after,omitempty"` // what changes data in use is configured on the live system, after the commit
	Postponed    []string `json:"-"`                    // packages that are: only unpacked here
	Again        bool     `json:"-"`                    // a further try: with the package lists of the one before
	NewConf      bool     `json:"new_conf,omitempty"`   // of a conffile that the machine changed, take the package's version
}

// Check refuses what is no package's name: it would be an option, or a command. What is held may
// be a pattern (apt_preferences(5)).
func (o *Options) Check() error {
	for _, p := range o.Packages {
		if !isName(p, "*?") {
			return fmt.Errorf("%q is not the name of a package", p)
		}
	}
	for _, p := range o.Hold {
		if !isName(p, "") {
			return fmt.Errorf("%q is not the name of a package, nor a pattern of * and ?", p)
		}
	}
	return nil
}

func isName(p, refused string) bool {
	return strings.Trim(p, "*?") != "" && !strings.HasPrefix(p, "-") && !strings.HasPrefix(p, "/") && !strings.HasPrefix(p, ".") &&
		!strings.ContainsAny(p, " \t\n'\"\\;&|<>$`(){}!"+refused)
}

// Paths of the sandbox's /run. The folders are the caller's: what apt downloads is
// kept between a plan and its apply.
const (
	RunDir       = "/run/liveupd"
	BinDir       = RunDir + "/bin" // first in PATH
	ScriptPath   = RunDir + "/apt"
	ListsDir     = RunDir + "/lists"
	ArchivesDir  = RunDir + "/archives"
	DebsDir      = RunDir + "/debs"
	PolicyPath   = "/usr/sbin/policy-rc.d"
	recordPolicy = RunDir + "/policy"
	recordHost   = RunDir + "/host-steps"
	recordWarn   = RunDir + "/warnings"
	recordConf   = RunDir + "/conffiles"
	recordBegan  = RunDir + "/configured"
	recordTouch  = RunDir + "/touched"
	rebootFile   = "/run/reboot-required"
	rebootPkgs   = "/run/reboot-required.pkgs"
)

// Keep are the files that Recorded reads.
var Keep = []string{recordPolicy, recordHost, recordWarn, recordConf, recordBegan, recordTouch, rebootFile, rebootPkgs}

// Inputs are what decides over apt's and dpkg's work beside their databases.
var Inputs = []string{"/etc/apt", "/etc/dpkg", "/etc/debconf.conf"}

// VerificationFailed is the script's status where a signature or a digest is wrong.
const VerificationFailed = 90

// PolicyScript refuses to start, stop or reload anything, and notes what was asked for.
const PolicyScript = `#!/bin/sh
# liveupd: what a maintainer script asks for is noted, and decided by the plan.
printf '%s\n' "$*" >>` + recordPolicy + `
exit 101
`

// stub stands for a program that acts on the running machine.
const stub = `#!/bin/sh
printf '%s\n' "${0##*/} $*" >>` + RunDir + `/TO
exit 0
`

// stubs are the programs that act on the machine: what boot loaders are asked for is done after
// the commit; the rest the plan finds by itself, by what changed.
var stubs = map[string]string{
	"update-grub": "host-steps", "update-grub2": "host-steps", "grub-install": "host-steps", "bootctl": "host-steps", "dkms": "host-steps",
	"flash-kernel": "host-steps", "zipl": "host-steps", "lilo": "host-steps", "extlinux-update": "host-steps", "u-boot-update": "host-steps",
	// They keep a history of the machine, and what the sandbox does is not that yet: hooks of
	// liveupd's own call them around the update.
	"etckeeper": "acts", "snapper": "acts",
	"apparmor_parser": "acts", "udevadm": "acts", "modprobe": "acts", "sysctl": "acts", "systemd-binfmt": "acts",
}

// detectVirt answers for systemd-detect-virt(1): who asks means the machine, not the sandbox
// with its PID namespace. What it says of other things is so.
const detectVirt = `#!/bin/sh
container=CONTAINER quiet= what=any
real() { PATH=${PATH#*:} exec systemd-detect-virt "$@"; }
say() { [ -n "$quiet" ] || echo "$1"; [ "$1" != none ]; }
for arg; do
	case $arg in
	-c | --container) what=container ;;
	-q | --quiet) quiet=--quiet ;;
	-cq | -qc) what=container quiet=--quiet ;;
	*) real "$@" ;;
	esac
done
if [ $what = container ] || [ "$container" != none ]; then say "$container"; else real --vm $quiet; fi
`

// Stubs gives the files of the folder that comes first in PATH. container is
// what the machine is, as systemd-detect-virt calls it; "" where it is none.
func Stubs(container string) map[string]string {
	if container == "" {
		container = "none"
	}
	out := map[string]string{RunDir + "/bin/systemd-detect-virt": strings.ReplaceAll(detectVirt, "CONTAINER", quote(container))}
	out[BinDir+"/systemctl"] = systemctlStub()
	for name, to := range stubs {
		out[BinDir+"/"+name] = strings.ReplaceAll(stub, "TO", to)
	}
	return out
}

// Environment is what maintainer scripts find.
func Environment() []string {
	return []string{
		"PATH=" + BinDir + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", "SYSTEMD_OFFLINE=1", "NEEDRESTART_SUSPEND=1",
		"APT_LISTCHANGES_FRONTEND=none", "APT_LISTBUGS_FRONTEND=none",
	}
}

// LiveEnvironment is what they find on the live system, after the commit. The frontend's lock
// is ours (dpkg(1), DPKG_FRONTEND_LOCKED).
func LiveEnvironment() []string {
	return []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8",
		"DEBIAN_FRONTEND=noninteractive", "NEEDRESTART_SUSPEND=1", "DPKG_FRONTEND_LOCKED=true",
	}
}

// Script is the program that runs in the sandbox, twice: "fetch" with the network and
// "install" without.
func (o *Options) Script() string {
	var b strings.Builder
	b.WriteString("#!/bin/sh\nset -eu\ncd /\numask 022\n")
	fmt.Fprintf(&b, "run=%s\n", RunDir)
	fmt.Fprintf(&b, "postponed=%s\n", quote(strings.Join(o.Postponed, " ")))
	fmt.Fprintf(&b, "hold=%s\nonly_security=%t\nunattended=%t\nrefresh=%t\nagain=%t\n", quote(strings.Join(o.Hold, " ")), o.OnlySecurity, o.Unattended, !o.NoRefresh && !o.Again, o.Again)
	conf := "old"
	if o.NewConf {
		conf = "new"
	}
	fmt.Fprintf(&b, "conf=%s\n", conf)
	fmt.Fprintf(&b, "operation() { apt-get -q -c $run/apt.conf \"$@\" %s; }\n", o.operation())
	b.WriteString(driver)
	b.WriteString(postpone)
	b.WriteString("\n\"$1\"\n")
	return b.String()
}

func (o *Options) operation() string {
	var words []string
	if o.AutoRemove {
		words = append(words, "--autoremove")
	}
	switch {
	case len(o.Packages)+len(o.Debs) > 0:
		words = append(words, "install", "--")
		for i := range o.Debs {
			words = append(words, DebPath(i))
		}
		for _, p := range o.Packages {
			words = append(words, quote(p))
		}
	case o.Full:
		words = append(words, "dist-upgrade")
	default:
		words = append(words, "--with-new-pkgs", "upgrade")
	}
	return strings.Join(words, " ")
}

// DebPath is where the sandbox has the file Debs[i].
func DebPath(i int) string { return fmt.Sprintf("%s/%d.deb", RunDir, i) }

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

const driver = `
mkdir -p /run/systemd/system $run/lists/partial $run/archives/partial
chmod 0755 $run $run/lists $run/archives
if id _apt >/dev/null 2>&1; then chown _apt $run/lists/partial $run/archives/partial; fi

# The lists are those of the machine until newer ones are had.
seed() {
	[ -d /var/lib/apt/lists ] && [ $again = false ] || return 0
	if [ ! -e $run/lists/.seeded ] || [ $refresh = false ] || [ -n "$(find /var/lib/apt/lists -maxdepth 1 -newer $run/lists/.seeded | head -n 1)" ]; then
		find $run/lists -maxdepth 1 -type f -delete
		find /var/lib/apt/lists -maxdepth 1 -type f ! -name lock -exec cp -a -t $run/lists {} +
		: >$run/lists/.seeded
	fi
}

configure() {
	cat >$run/apt.conf <<-EOF
	APT::Get::Assume-Yes "true";
	APT::Get::Show-Upgraded "true";
	Dpkg::Use-Pty "false";
	Dpkg::Path "$PATH";
	Dpkg::Progress-Fancy "false";
	Dir::State::lists "$run/lists";
	Dir::Cache::archives "$run/archives";
	Dir::Cache::pkgcache "$run/pkgcache.bin";
	Dir::Cache::srcpkgcache "$run/srcpkgcache.bin";
	Dir::Etc::preferences "$run/preferences";
	Dpkg::Options:: "--force-confdef";
	Dpkg::Options:: "--force-conf$conf";
	Dpkg::Options:: "--status-logger=$run/logger";
	Dir::Bin::dpkg "$run/dpkg";
	EOF
	watch
	# Of records for all packages the first that fits counts: ours, then the machine's.
	pins >$run/preferences
	main=$(apt-config shell main Dir::Etc::preferences/f | sed "s/^main='\(.*\)'$/\1/")
	if [ -n "$main" ] && [ -f "$main" ]; then { cat "$main"; echo; } >>$run/preferences; fi
}

pin() { printf 'Package: %s\nPin: %s\nPin-Priority: %s\n\n' "$1" "$2" "$3"; }


pins() {
	# No pattern is one of files here; apt knows a package of all architectures by its name alone.
	set -f
	for p in $hold; do pin "${p%:all}" 'release *' -1; done
	set +f
	if [ $only_security = true ]; then
		restricted=yes
		pin '*' 'release l=Debian-Security' 500
		pin '*' 'release a=*-security' 500
		pin '*' 'release n=*-security' 500
		pin '*' 'release a=*-apps-security' 500
	fi
	if [ $unattended = true ]; then unattended_pins; fi
	# Versions of other origins are taken only for packages that are not installed.
	# What is installed keeps its priority: apt counts it as an archive, too.
	if [ -n "${restricted-}" ]; then
		pin '*' 'release a=now' 100
		pin '*' 'release *' 50
	fi
}

unattended_pins() {
	ID=debian VERSION_CODENAME=
	if [ -r /etc/os-release ]; then . /etc/os-release; fi
	distro=$(printf '%s' "$ID" | awk '{ print toupper(substr($0, 1, 1)) substr($0, 2) }')
	apt-config dump | sed -n "
		s/\${distro_codename}/$VERSION_CODENAME/g
		s/\${distro_id}/$distro/g
		s/^Unattended-Upgrade::Origins-Pattern:: \"\(.*\)\";$/pattern \1/p
		s/^Unattended-Upgrade::Allowed-Origins:: \"\([^:\"]*\):\([^\"]*\)\";$/pattern origin=\1,archive=\2/p
		s/^Unattended-Upgrade::Package-Blacklist:: \"\(.*\)\";$/black \1/p
	" >$run/unattended
	while read -r what text; do
		case $what in
		black) pin "/^${text#^}/" 'release *' -1 ;;
		pattern)
			restricted=yes
			release= site= odd=
			rest=$text,
			while [ -n "$rest" ]; do
				field=${rest%%,*} rest=${rest#*,}
				case $field in
				origin=* | o=*) release="$release,o=${field#*=}" ;;
				label=* | l=*) release="$release,l=${field#*=}" ;;
				codename=* | n=*) release="$release,n=${field#*=}" ;;
				archive=* | suite=* | a=*) release="$release,a=${field#*=}" ;;
				component=* | c=*) release="$release,c=${field#*=}" ;;
				site=*) site=${field#*=} ;;
				*) odd=$field ;;
				esac
			done
			# A pin names a site or a release, never both: such a pattern allows nothing here,
			# rather than more than it says.
			if [ -n "$odd" ] || [ -n "$site" ] && [ -n "$release" ]; then
				echo "the pattern \"$text\" of Unattended-Upgrade::Origins-Pattern allows nothing: ${odd:-a site with other fields} cannot be chosen by apt's pins" >>$run/warnings
			elif [ -n "$release" ]; then pin '*' "release ${release#,}" 500
			elif [ -n "$site" ]; then pin '*' "origin \"$site\"" 500; fi ;;
		esac
	done <$run/unattended
}

refused='Hash Sum mismatch|signature verification|unauthenticated|is not signed|NO_PUBKEY|BADSIG|EXPKEYSIG|REVKEYSIG|signatures? (was|were|are) (invalid|not)|not valid yet|Release file .* expired'

fetch() {
	seed
	configure
	if [ $refresh = true ]; then
		if ! apt-get -q -c $run/apt.conf -o APT::Update::Error-Mode=any update >$run/update.log 2>&1; then
			if grep -Eq "$refused" $run/update.log; then
				grep -E '^[EW]:' $run/update.log >&2
				exit 90
			fi
			echo "the package lists could not be refreshed, older ones serve: $(grep -E '^[EW]:' $run/update.log | head -n 1)" >>$run/warnings
		else
			: >$run/lists/.seeded
		fi
	fi
	rc=0
	operation --download-only >$run/fetch.log 2>&1 || rc=$?
	cat $run/fetch.log
	if [ $rc != 0 ]; then
		if grep -Eq "$refused" $run/fetch.log; then exit 90; fi
		exit $rc
	fi
}

install() {
	: >$run/began
	operation
	dpkg --audit >$run/audit
	# What an earlier run of dpkg has left is not always apt's to finish: triggers that wait are not.
	if [ -s $run/audit ]; then
		$run/dpkg --force-confdef --force-conf$conf --status-logger=$run/logger --configure -a || :
		dpkg --audit >$run/audit
	fi
	find $run/marks -type f -printf '%C@ %f\n' >$run/configured
	find /var -path /var/cache/liveupd -prune -o -cnewer $run/began -printf '%C@ %p\n' >$run/touched 2>/dev/null || :
	if [ -s $run/audit ]; then
		cat $run/audit >&2
		echo "E: packages are left half-installed or half-configured:" \
			$(dpkg-query -W -f '${db:Status-Abbrev}${binary:Package}\n' | sed -n '/^[a-z][inc] /!p' | cut -c 4-) >&2
		exit 1
	fi
	unconfigure
	find /etc -xdev \( -name '*.dpkg-dist' -o -name '*.ucf-dist' -o -name '*.dpkg-new' -o -name '*.dpkg-old' -o -name '*.ucf-old' \) -cnewer $run/began | sort | while read -r beside; do
		path=${beside%.*}
		dpkg-query -S "$path" >/dev/null 2>&1 || grep -qs " $path$" /var/lib/ucf/hashfile || {
			# Where the machine has a link in the conffile's place, dpkg lays it beside the link's end.
			[ "${beside##*.}" = dpkg-dist ] && [ -e "$path" ]
		} || continue
		case $beside in
		*-dist | *-new) printf 'kept %s\n' "$path" ;;
		*) printf 'replaced %s\n' "$path" ;;
		esac
		diff -u "$path" "$beside" 2>/dev/null | head -n 200 | sed 's/^/ /' || :
	done >$run/conffiles
}
`

// postpone is the part of the driver for packages that are only unpacked. Their postinst
// is an empty one while dpkg configures, so that others which depend on them are configured;
// then it is put back, and dpkg's database says what dpkg itself would have written had it
// unpacked them and no more (dpkg(1), Config-Version).
const postpone = `
# Each package's configuration leaves a mark when it begins; a file's own time tells when. dpkg
# does not wait for the logger, but for the mark of its own beginning it does.
watch() {
	mkdir -p $run/marks $run/postponed
	cat >$run/logger <<-EOF
	#!/bin/sh
	n=0
	while read -r what which name rest; do
		case "\$what \$which" in
		'processing: configure:' | 'processing: trigproc:')
			n=\$((n + 1))
			: >"$run/marks/\$\$-\$n-\$name" ;;
		esac
	done
	EOF
	cat >$run/dpkg <<-EOF
	#!/bin/sh
	phase=unpack
	for arg; do
		[ "\$arg" = --configure ] || continue
		phase=configure
		for p in $postponed; do
			# One that is unpacked later has its older script yet.
			case \$(dpkg-query -W -f '\${db:Status-Status}' "\$p" 2>/dev/null) in
			unpacked | half-configured) ;;
			*) continue ;;
			esac
			script=\$(dpkg-query --control-path "\$p" postinst 2>/dev/null)
			[ -n "\$script" ] || continue
			cp -a "\$script" $run/postponed/\$p
			printf '#!/bin/sh\nexit 0\n' >"\$script"
		done
	done
	: >"$run/marks/\$\$-0-\$phase"
	exec /usr/bin/dpkg "\$@"
	EOF
	chmod 0755 $run/logger $run/dpkg
	for p in $postponed; do
		dpkg-query -W -f '${Status}=${Version}\n' "$p" 2>/dev/null | sed -n 's/.* installed=//p' >$run/postponed.$p
	done
}

unconfigure() {
	for p in $postponed; do
		if [ ! -e $run/postponed/$p ]; then
			echo "$p is not configured by this update" >&2
			exit 1
		fi
		cp -a $run/postponed/$p "$(dpkg-query --control-path "$p" postinst)"
		name=${p%:*} arch=$(dpkg-query -W -f '${Architecture}' "$p") was=$(cat $run/postponed.$p)
		awk -v name="$name" -v arch="$arch" -v was="$was" '
			function flush(  i, mine, of) {
				for (i = 1; i <= n; i++) {
					if (line[i] == "Package: " name) mine = 1
					if (line[i] == "Architecture: " arch) of = 1
				}
				for (i = 1; i <= n; i++) {
					if (mine && of) {
						if (line[i] ~ /^Status: /) sub(/ [^ ]*$/, " unpacked", line[i])
						if (line[i] ~ /^(Config-Version|Triggers-Pending|Triggers-Awaited): /) continue
						if (line[i] ~ /^Version: / && was != "") line[i] = line[i] "\nConfig-Version: " was
					}
					print line[i]
				}
				if (n) print ""
				n = 0
			}
			$0 == "" { flush(); next }
			{ line[++n] = $0 }
			END { flush() }
		' /var/lib/dpkg/status >/var/lib/dpkg/status.liveupd
		chmod 0644 /var/lib/dpkg/status.liveupd
		mv /var/lib/dpkg/status.liveupd /var/lib/dpkg/status
	done
}
`
