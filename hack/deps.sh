#!/usr/bin/env bash
# Installs the Debian packages that the harness needs. Does nothing, quickly, when they are there.
#   deps.sh [unit|vm|bench|profile|cluster|all]     default: all
set -euo pipefail
source "$(dirname "$0")/lib/common.sh"

# The race detector needs a C compiler; everything else is built without.
COMMON=(ca-certificates gcc git iproute2 jq libc6-dev make procps xz-utils)
# The VM and what the tests in it use.
VM=(aoetools busybox-static cpio e2fsprogs erofs-utils fio kmod nbd-client libprotobuf-dev protobuf-compiler qemu-system-x86 tcpdump
  util-linux vblade xfsprogs)
# What the benchmarks compare with.
BENCH=(nbd-server open-iscsi tgt)
PROFILE=(linux-perf)
# What a Kubernetes node of ours is made of, and the cluster around it.
CLUSTER=(conntrack containerd containernetworking-plugins iptables openssl runc socat)

case ${1:-all} in
  unit) wanted=("${COMMON[@]}") ;;
  vm) wanted=("${COMMON[@]}" "${VM[@]}") ;;
  bench) wanted=("${COMMON[@]}" "${VM[@]}" "${BENCH[@]}") ;;
  profile) wanted=("${COMMON[@]}" "${VM[@]}" "${PROFILE[@]}") ;;
  cluster | all) wanted=("${COMMON[@]}" "${VM[@]}" "${CLUSTER[@]}") ;;
  *) die "usage: deps.sh [unit|vm|bench|profile|cluster|all]" ;;
esac

missing=()
for package in "${wanted[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
command -v go >/dev/null || die "Go is not installed: unpack https://go.dev/dl to /usr/local/go (see go.mod for the version)"
[ ${#missing[@]} -gt 0 ] || exit 0

need_root
say "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# Services of these packages must not start on the developer's machine: policy-rc.d answers "not allowed" (101).
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
  printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy
  trap 'rm -f "$log" $policy' EXIT
fi
{ apt-get update -q && apt-get install -qy --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 || {
  tail -30 "$log" >&2
  die "apt-get could not install ${missing[*]}"
}
