#!/bin/bash
# `make run`: shows what this machine's own pending upgrades would interrupt. Builds the
# programs and plans; nothing of the machine is changed, and what the plan keeps for an
# apply is removed again where liveupd was not used here before.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
top=$(dirname "$here")
# shellcheck source=tests/setup/lib.sh
. "$here/setup/lib.sh"

[ "$(id -u)" = 0 ] || die "needs root: it reads what runs, and unpacks packages in a sandbox"
command -v apt-get >/dev/null || die "this machine has no apt: see README.md for plans from a directory or an archive"
say "builds the programs"
make -C "$top" --no-print-directory build >&2

used=$([ -e /.liveupd ] && echo yes || echo no)
code=0
say "liveupd apply --plan"
"$top/bin/liveupd" apply --plan || code=$?
if [ "$used" = no ] && [ -d /.liveupd ]; then
	"$top/bin/liveupd" clean --keep 0 >/dev/null 2>&1 || true
	rm -rf --one-file-system /.liveupd
fi
exit "$code"
