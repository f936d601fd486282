#!/bin/bash
# `make run`: shows a plan. Installs what is needed, builds the programs, makes a small
# real Debian root and an update of it (a library that Debian upgraded, a changed unit,
# a changed configuration) and prints what the update would do. Nothing of the machine
# itself is updated; the work copies are removed at the end.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
top=$(dirname "$here")
# shellcheck source=tests/setup/lib.sh
. "$here/setup/lib.sh"

[ "$(id -u)" = 0 ] || die "needs root: it makes a Debian root with debootstrap"
"$here/setup/install.sh"
say "builds the programs"
make -C "$top" --no-print-directory build >&2

cached=$("$here/setup/root.sh" small)
mkdir -p "$CACHE/run"
work=$(mktemp -d "$CACHE/run/XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
root=$work/root update=$work/update
cp -a --reflink=auto "$cached" "$root"
mkdir -p "$update"

# Takes from the first package of which Debian has another version its libraries.
library() {
	local package deb old new archive
	for package in "$@"; do
		if read -r deb old new archive < <("$here/setup/deb.sh" "$cached" "$package"); then
			say "the update brings $package $new ($archive) for $old"
			dpkg-deb --extract "$deb" "$work/deb"
			mkdir -p "$update/usr"
			# Some packages still ship /lib, which is usr/lib in the root.
			for dir in "$work/deb" "$work/deb/usr"; do
				[ ! -d "$dir/lib" ] || (cd "$dir" && find lib -name '*.so*' -exec cp -a --parents -t "$update/usr" {} +)
			done
			rm -rf "$work/deb"
			return
		fi
	done
	die "Debian has no upgrade of any of: $*"
}
library libssl3 libpcre2-8-0 liblzma5

# edit PATH SED-EXPRESSION: the root's file, changed.
edit() {
	mkdir -p "$update/$(dirname "$1")"
	cp -a "$root/$1" "$update/$1"
	sed -i "$2" "$update/$1"
	! cmp -s "$root/$1" "$update/$1" || die "the edit of $1 changes nothing"
	say "the update changes /$1"
}
edit usr/lib/systemd/system/cron.service 's/^\[Service\]/&\nNice=5/'
edit etc/nginx/nginx.conf 's/worker_connections .*/worker_connections 1024;/'

plan=("$top/bin/liveupd" apply --plan --root "$root" --source "tree:$update" --allow-unsigned)
say "${plan[*]}"
"${plan[@]}"
