#!/bin/bash
# `make bench`: measures liveupd against cp, rsync and git (see tests/bench) and prints a
# table. Arguments go to the program: -runs 3, -json, ...
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
top=$(dirname "$here")
# shellcheck source=tests/setup/lib.sh
. "$here/setup/lib.sh"
[ "$(id -u)" = 0 ] || die "needs root: it mounts a file system and drops caches"
"$here/setup/install.sh"
for root in bookworm peers night; do "$here/setup/root.sh" "$root" >/dev/null; done
make -C "$top" --no-print-directory build >&2
mkdir -p "$CACHE"
cd "$top"
exec go run ./tests/bench -liveupd bin/liveupd -cache "$CACHE" "$@"
