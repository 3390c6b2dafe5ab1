#!/usr/bin/env bash
# Boots a Debian 6.12 kernel under QEMU and runs a script in it as root.
#
#   vm.sh build                    unpack the emulator and the kernel, make the initramfs (once: a 120 MB download and about 20 s)
#   vm.sh run SCRIPT [QEMU ARG…]   boot, run SCRIPT in the guest, power off; the exit status is SCRIPT's
#   vm.sh shell                    an interactive shell in a fresh guest (Ctrl-D powers it off)
#
# The guest sees the host's root file system under the same paths, read-only with a tmpfs on top, so every program and
# file of the host is there too. What it writes to /results appears in $RESULTS on the host. Software emulation (TCG) is
# the default: no /dev/kvm is needed, a boot takes about 5 s.
#
#   RESULTS=DIR   directory shared read-write as /results   (default: a new one, removed afterwards)
#   SMP=2 MEM=4096 TIMEOUT=600   virtual CPUs, MiB, seconds until the guest is killed
#   NICS=0        virtio NICs on one hub, eth0, eth1, …: they see each other and nothing else
#   ENV="A=1 B=2" variables for the script
#   VM_ACCEL=kvm  use KVM where it works
set -euo pipefail
source "$(dirname "$0")/lib/common.sh"
source "$(dirname "$0")/lib/vm.sh"

run() {
  [ $# -ge 1 ] || die "usage: vm.sh run SCRIPT [QEMU ARG…]"
  local script status; script=$(realpath "$1"); shift
  [ -r "$script" ] || die "cannot read $script"
  need_root
  vm_build
  if [ -z "${RESULTS:-}" ]; then
    RESULTS=$(mktemp -d "$VM/run.XXXXXX")
    trap 'rm -rf "$RESULTS"' EXIT
  fi
  vm_prepare "$script"
  qemu_command "$@"
  # A carriage return before every newline is the serial line's; the guest's output is shown as it comes.
  timeout -k 5 "${TIMEOUT:-600}" "${QEMU[@]}" </dev/null > >(tr -d '\r') &
  local pid=$!
  trap 'kill $pid 2>/dev/null || true' INT TERM
  wait $pid || true
  status=$(cat "$RESULTS/.vm/status" 2>/dev/null || true)
  [ -n "$status" ] || { say "the guest ended without a result (panic, or killed after TIMEOUT=${TIMEOUT:-600} s)"; status=125; }
  return "$status"
}

shell() {
  need_root
  vm_build
  RESULTS=${RESULTS:-$(mktemp -d "$VM/run.XXXXXX")}
  local script; script=$(mktemp)
  echo 'exec setsid -c bash -i </dev/ttyS0 >/dev/ttyS0 2>&1' >"$script"
  vm_prepare "$script"
  rm "$script"
  stty -icanon -echo -isig 2>/dev/null || true
  trap 'stty sane 2>/dev/null; rm -rf "$RESULTS"' EXIT
  qemu_command "$@"
  "${QEMU[@]}" || true
}

command=${1:-}
[ $# -eq 0 ] || shift
case $command in
  build) vm_build ;;
  run | shell) "$command" "$@" ;;
  *) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit 2 ;;
esac
