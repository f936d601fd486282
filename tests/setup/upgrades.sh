#!/bin/bash
# Prints the files of all upgrades that Debian has published for a cached root since it
# was made, one a line: what `apt-get dist-upgrade` would install in it.
#
#   upgrades.sh ROOT     ROOT: a folder that root.sh printed
#
# Packages and their lists are kept in the cache; neither the root's nor the machine's
# apt state is touched.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=tests/setup/lib.sh
. "$here/lib.sh"
[ $# = 1 ] || die "usage: upgrades.sh ROOT"
root=$(readlink -f "$1")
suite=$(. "$root/usr/lib/os-release" && printf %s "$VERSION_CODENAME")
state=$CACHE/apt/$suite-$(basename "$root")
mkdir -p "$state"/{lists/partial,archives/partial,etc}
exec 9>"$state/lock"
flock 9

{
	for pocket in "$suite" "$suite-updates"; do
		echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(archive main) $pocket main"
	done
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(archive security) $suite-security main"
} >"$state/etc/sources.list"
options=(
	-o Dir::State="$state" -o Dir::State::Lists="$state/lists" -o Dir::State::Status="$root/var/lib/dpkg/status"
	-o Dir::Cache="$state" -o Dir::Cache::Archives="$state/archives"
	-o Dir::Etc::SourceList="$state/etc/sources.list" -o Dir::Etc::SourceParts=/dev/null
	-o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null
	-o APT::Sandbox::User=root -o Acquire::Languages=none -o APT::Install-Recommends=false
)
update() { apt-get -q "${options[@]}" update >"$state/log" 2>&1 9>&- || { tail -n 5 "$state/log" >&2; die "cannot read the package lists of $suite"; }; touch "$state/fresh"; }
fetch() { apt-get -q -y "${options[@]}" --download-only dist-upgrade >"$state/log" 2>&1 9>&-; }
[ -n "$(find "$state/fresh" -mmin -1440 2>/dev/null)" ] || update
# Lists that are older than the archive name files that are gone: read them again.
fetch || { update; fetch; } || { tail -n 5 "$state/log" >&2; die "cannot download the upgrades of $suite"; }
apt-get -q -y "${options[@]}" --print-uris dist-upgrade 2>/dev/null 9>&- | awk '/^.(http|file)/ { print $2 }' >"$state/missing"
[ ! -s "$state/missing" ] || die "not all upgrades of $suite were downloaded"
apt-get -q -s "${options[@]}" dist-upgrade 9>&- | awk '/^Inst / { print $2 }' | sort >"$state/wanted"
while read -r package; do
	find "$state/archives" -maxdepth 1 -name "${package%%:*}_*.deb" -printf '%T@ %p\n' | sort -n | tail -n 1 | cut -d' ' -f2
done <"$state/wanted"
