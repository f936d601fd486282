#!/bin/bash
# Prints a real upgrade of a package: a version that Debian published beside the one
# that a cached root holds.
#
#   deb.sh ROOT PACKAGE     ROOT: a folder that root.sh printed
#
# One line of output: FILE OLD-VERSION NEW-VERSION ARCHIVE. The newest version of the
# release, its updates and its security archive is taken; where the root
# holds that already, another one that the archives still have (going back is a
# change too). Exit code 2: the archives have no other version.
# Packages and their lists are kept in the cache; apt's own state is not touched.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=tests/setup/lib.sh
. "$here/lib.sh"
[ $# = 2 ] || die "usage: deb.sh ROOT PACKAGE"
root=$(readlink -f "$1") package=$2
suite=$(. "$root/usr/lib/os-release" && printf %s "$VERSION_CODENAME")
state=$CACHE/apt/$suite
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
	-o APT::Sandbox::User=root -o Acquire::Languages=none
)
update() { apt-get -q "${options[@]}" update >"$state/log" 2>&1 9>&- || { tail -n 5 "$state/log" >&2; die "cannot read the package lists of $suite"; }; touch "$state/fresh"; }
[ -n "$(find "$state/fresh" -mmin -1440 2>/dev/null)" ] || update

old=$(dpkg-query --admindir="$root/var/lib/dpkg" -W -f '${Version}' "$package") || die "the root $root has no package $package"
# madison: PACKAGE | VERSION | URI SUITE/COMPONENT ARCH Packages
choose() {
	local version where best="" best_where="" other="" other_where=""
	while IFS='|' read -r _ version where; do
		version=$(echo "$version" | tr -d ' ')
		where=$(echo "$where" | awk '{ print $2 }')
		if dpkg --compare-versions "$version" gt "${best:-$old}"; then
			best=$version best_where=$where
		elif [ "$version" != "$old" ] && dpkg --compare-versions "$version" gt "${other:-0}"; then
			other=$version other_where=$where
		fi
	done < <(apt-cache "${options[@]}" madison "$package" 2>/dev/null | grep -v ' Sources$')
	new=${best:-$other} from=${best_where:-$other_where}
}
fetch() { (cd "$state/archives" && apt-get -q "${options[@]}" download "$package=$new" >"$state/log" 2>&1 9>&-); }
file() { find "$state/archives" -maxdepth 1 -name "${package}_${new//:/%3a}_*.deb" | head -n 1; }

choose
[ -n "$new" ] || { say "Debian $suite has no other version of $package than $old"; exit 2; }
if [ -z "$(file)" ] && ! fetch; then
	# The lists name a file that the archive has replaced.
	update
	choose
	fetch || { tail -n 5 "$state/log" >&2; die "cannot download $package $new"; }
fi
printf '%s %s %s %s\n' "$(file)" "$old" "$new" "${from%%/*}"
