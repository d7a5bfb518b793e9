#!/usr/bin/env bash
# Installs the OS packages that building, testing and the demo need.
# Quick and silent when all of them are there. `deps.sh bench` adds what
# `make bench` compares with, `deps.sh cluster` what a Kubernetes node needs,
# `deps.sh vm` what makes a virtual machine.
set -euo pipefail

packages=(
	btrfs-progs e2fsprogs xfsprogs # the filesystems a volume can carry
	fdisk mount util-linux         # losetup, blkid, mount, wipefs
	gcc libc6-dev                  # go test -race
	qemu-utils libvhdi-utils 7zip  # oracles: other readers of VHDX
	fio strace procps              # load, and counting sync calls
	git ca-certificates
)
case "${1:-}" in
bench)
	packages+=(qemu-system-common) # qemu-storage-daemon
	;;
cluster)
	packages+=(
		containerd runc containernetworking-plugins # what runs the pods
		iproute2 iptables openssl                   # the node's network, its keys
		busybox-static mmdebstrap                   # images
	)
	;;
vm)
	packages+=(mmdebstrap xz-utils) # its root filesystem, and what its kernel is packed by
	;;
esac

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
	echo "deps: no apt here. Install what corresponds to these Debian packages, then run make again with DEPS_SKIP=1:" >&2
	echo "  ${packages[*]}" >&2
	[ -n "${DEPS_SKIP:-}" ] && exit 0
	exit 1
fi

missing=()
for p in "${packages[@]}"; do
	# Only "installed" counts; a removed package may still have its config files here.
	status=$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null || true)
	[ "$status" = installed ] || missing+=("$p")
done
[ ${#missing[@]} -eq 0 ] && exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
	command -v sudo >/dev/null || {
		echo "deps: not root and no sudo. As root, run: apt-get install -y ${missing[*]}" >&2
		exit 1
	}
	as_root=(sudo)
fi

echo "deps: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt_get() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=120 "$@"; }
apt_get update
apt_get install -y --no-remove --no-install-recommends "${missing[@]}"
