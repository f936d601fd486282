#!/bin/bash
# Prints the path of a cached Debian root, after making it where there is none.
#
#   root.sh bookworm|trixie|small|peers|night|together|servers-bookworm|servers-trixie|vm|vm-grub|vm-bookworm
#
# small is bookworm with nginx only, for `make run`; peers is trixie with what
# liveupd is compared with; night is bookworm with three servers and what upgrades a Debian
# machine unattended; together is trixie with all that looks after updates; servers-* have
# servers with data of their own; vm is trixie with a kernel and what
# builds its initrd, for virtual machines, vm-grub such a one with what makes
# GRUB's entries, vm-bookworm an older kernel and AppArmor.
#
# The roots hold the release's own versions (suite "main" only, neither updates
# nor security), so that the security archive has real upgrades for them. They
# lie in ${LIVEUPD_CACHE:-/var/cache/liveupd}/roots/NAME-KEY; KEY is a hash of
# all that went into them, and NAME is a symlink to the newest. A root is built
# under another name and renamed when it is complete; a lock lets one build at
# a time. Nobody writes to a cached root: copy it.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=tests/setup/lib.sh
. "$here/lib.sh"
cd /

name=${1:-}
base=systemd,systemd-sysv,dbus,ca-certificates
case $name in
bookworm | trixie)
	suite=$name
	packages="nginx cron openssh-server python3-minimal python3 libpam-systemd iproute2 procps acl attr libcap2-bin openssl curl"
	;;
small)
	suite=bookworm
	packages="nginx cron"
	;;
peers)
	suite=trixie
	packages="nginx cron openssh-server python3 perl libpam-systemd iproute2 procps needrestart debian-goodies lsof"
	;;
night)
	suite=bookworm
	packages="nginx exim4-daemon-light openssh-server cron unattended-upgrades needrestart python3 libpam-systemd iproute2 procps"
	;;
together)
	suite=trixie
	packages="nginx cron openssh-server python3 perl libpam-systemd iproute2 procps unattended-upgrades needrestart etckeeper git"
	;;
servers-bookworm | servers-trixie)
	suite=${name#servers-}
	packages="nginx openssh-server python3 libpam-systemd iproute2 procps mariadb-server postgresql redis-server apache2 php-fpm rsyslog bind9 dovecot-imapd slapd samba"
	;;
vm)
	suite=trixie
	packages="linux-image-cloud-amd64 initramfs-tools dracut-core udev zstd e2fsprogs xfsprogs btrfs-progs kexec-tools busybox cron openssh-server iproute2 procps"
	;;
vm-grub)
	suite=trixie
	packages="linux-image-cloud-amd64 initramfs-tools udev zstd e2fsprogs cron openssh-server iproute2 procps grub2-common python3-minimal"
	;;
vm-bookworm)
	suite=bookworm
	packages="linux-image-cloud-amd64 apparmor"
	;;
*) die "usage: root.sh bookworm|trixie|small|peers|night|together|servers-bookworm|servers-trixie|vm|vm-grub|vm-bookworm" ;;
esac

recipe=1 # raise it when the steps below change
key=$(printf '%s\n' "$recipe" "$suite" "$base" "$packages" | sha256sum | cut -c1-10)
roots=$CACHE/roots
dir=$roots/$name-$key
publish() { ln -sfn "$name-$key" "$roots/.$name.$$" && mv -T "$roots/.$name.$$" "$roots/$name"; }

if [ -e "$dir/usr/lib/os-release" ]; then
	[ "$(readlink "$roots/$name" || true)" = "$name-$key" ] || publish
	printf '%s\n' "$dir"
	exit 0
fi
[ "$(id -u)" = 0 ] || die "cannot make the Debian root $name: needs root"
command -v debootstrap >/dev/null || die "cannot make the Debian root $name: no debootstrap (run tests/setup/install.sh)"
mkdir -p "$roots"
exec 9>"$roots/$name.lock"
flock 9
if [ -e "$dir/usr/lib/os-release" ]; then
	printf '%s\n' "$dir"
	exit 0
fi

part=$dir.partial
log=$roots/$name.log
clean() {
	for m in "$part/proc" "$part/dev" "$part/sys"; do
		while mountpoint -q "$m"; do umount "$m" || umount -l "$m"; done
	done
	rm -rf --one-file-system "$part"
}
trap clean EXIT
clean
say "makes the Debian root $dir (about 90 s, once)"
{
	debootstrap --variant=minbase --include="$base" "$suite" "$part" "$(archive main)"
	# No service starts while packages are configured.
	printf '#!/bin/sh\nexit 101\n' >"$part/usr/sbin/policy-rc.d"
	chmod 0755 "$part/usr/sbin/policy-rc.d"
	mount -t proc proc "$part/proc"
	export DEBIAN_FRONTEND=noninteractive LC_ALL=C
	chroot "$part" apt-get -q update
	# shellcheck disable=SC2086
	chroot "$part" apt-get -q -y --no-install-recommends install $packages
	umount "$part/proc"
	chroot "$part" apt-get clean
	rm -f "$part/usr/sbin/policy-rc.d"
	rm -rf "$part"/var/lib/apt/lists/* "$part"/var/cache/apt/*.bin "$part"/var/log/*.log
	: >"$part/etc/machine-id"
	echo "$name" >"$part/etc/hostname"
} >"$log" 2>&1 9>&- || { tail -n 20 "$log" >&2; die "cannot make the Debian root $name: see $log"; }
mv -T "$part" "$dir"
publish
printf '%s\n' "$dir"
