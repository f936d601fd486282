# What the scripts under tests/ share. Sourced, never run.
# shellcheck shell=bash

CACHE=${LIVEUPD_CACHE:-/var/cache/liveupd}

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "$*"; exit 1; }

# archive KIND prints the address of the Debian archive (KIND main) or of the
# security archive (KIND security) that this machine itself uses, as apt
# understands its sources; Debian's own defaults where it has none.
archive() {
	local kind=$1 uri
	uri=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' 2>/dev/null |
		awk -v kind="$kind" '
			$3 != "main" { next }
			kind == "security" && $2 ~ /^(bookworm|trixie|forky)-security$/ { print $1; exit }
			kind == "main" && $2 ~ /^(bookworm|trixie|forky)$/ { print $1; exit }')
	case $kind in
	main) printf '%s\n' "${uri:-http://deb.debian.org/debian/}" ;;
	security) printf '%s\n' "${uri:-http://deb.debian.org/debian-security/}" ;;
	esac
}
