#!/bin/bash
# Installs what the tests, `make run` and `make bench` need on a Debian machine
# that has Go. Doing it again does nothing. Needs root; without root it says
# what is missing.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=tests/setup/lib.sh
. "$here/lib.sh"

# command:package, where a command tells; else the package's name alone.
needs=(
	debootstrap:debootstrap # real Debian roots
	systemd-nspawn:systemd-container # machines that boot them
	mkfs.ext4:e2fsprogs # file systems to test on
	mkfs.xfs:xfsprogs
	mkfs.btrfs:btrfs-progs
	mksquashfs:squashfs-tools # file systems that are never writable
	mkfs.erofs:erofs-utils
	busybox:busybox-static # a root for the staged view that needs no libraries
	python3:python3 # what scripts import, by the interpreter's own word
	cpio:cpio
	losetup:mount
	nsenter:util-linux
	ip:iproute2
	setfacl:acl
	setfattr:attr
	setcap:libcap2-bin
	matchpathcon:selinux-utils # labels, by libselinux's own word
	setfiles:policycoreutils
	selinux-policy-default
	minisign:minisign # signed trees, by another implementation
	qemu-system-x86_64:qemu-system-x86 # virtual machines, whose plug can be pulled
	qemu-img:qemu-utils
	rsync:rsync # what the benchmarks compare with
	git:git
	xdelta3:xdelta3
	make:make
	xz:xz-utils
	zstd:zstd
	bzip2:bzip2
	bsdtar:libarchive-tools # archives by another maker
	dpkg-deb:dpkg
	lintian:lintian # what Debian's own people would say of the package
	debian-archive-keyring
	ca-certificates
)

PATH=$PATH:/usr/sbin:/sbin
missing=()
for need in "${needs[@]}"; do
	case $need in
	*:*) command -v "${need%%:*}" >/dev/null || missing+=("${need##*:}") ;;
	*) dpkg-query -W -f '${db:Status-Status}' "$need" 2>/dev/null | grep -qx installed || missing+=("$need") ;;
	esac
done
if [ ${#missing[@]} = 0 ]; then
	say "all is there"
	exit 0
fi
[ "$(id -u)" = 0 ] || die "cannot install as an ordinary user; missing: ${missing[*]}"

export DEBIAN_FRONTEND=noninteractive
# Another package manager may be at work: wait for its lock.
apt=(apt-get -q -y -o DPkg::Lock::Timeout=900 -o Dpkg::Use-Pty=0)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
known() { apt-cache policy "$@" | awk '/Candidate:/ { n++; if ($2 == "(none)") bad = 1 } END { exit !(n == '$#' && !bad) }'; }
update() {
	say "reads the package lists"
	"${apt[@]}" update >"$log" 2>&1 || { tail -n 20 "$log" >&2; die "cannot read the package lists"; }
}
install() { "${apt[@]}" install --no-install-recommends "${missing[@]}" >"$log" 2>&1; }

known "${missing[@]}" || update
say "installs ${missing[*]}"
# Lists that are older than the archive name files that are gone: read them again.
install || { update && install; } || { tail -n 20 "$log" >&2; die "cannot install ${missing[*]}"; }
