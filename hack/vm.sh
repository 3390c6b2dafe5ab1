#!/usr/bin/env bash
# Boots a Debian 6.12 kernel under QEMU and runs a script in it as root.
#
#   vm.sh build                    unpack the kernel, make the initramfs (once: a 107 MB download and about 20 s)
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
VM=$CACHE/vm
KERNEL=$VM/kernel

build() {
  mkdir -p "$VM"
  exec 8>"$VM/build.lock"
  flock 8
  if ! up_to_date; then
    "$ROOT/hack/deps.sh" vm
    unpack_kernel
    make_initramfs
  fi
  exec 8>&-
}

up_to_date() {
  [ -e "$VM/initrd.gz" ] && [ "$ROOT/hack/vm/init" -ot "$VM/initrd.gz" ] && [ "$ROOT/hack/vm/modules" -ot "$VM/initrd.gz" ]
}

unpack_kernel() {
  [ ! -e "$KERNEL/.unpacked" ] || return 0
  local package
  package=$(apt-cache depends "$KERNEL_PACKAGE" 2>/dev/null | awk '/Depends: linux-image/ { print $2 }')
  if [ -z "$package" ]; then
    apt-get update -q >/dev/null
    package=$(apt-cache depends "$KERNEL_PACKAGE" 2>/dev/null | awk '/Depends: linux-image/ { print $2 }')
  fi
  [ -n "$package" ] || die "no package $KERNEL_PACKAGE: it is in Debian 12's security archive and in Debian 13"
  say "downloading and unpacking $package"
  rm -rf "$VM/download" "$KERNEL"
  mkdir -p "$VM/download"
  (cd "$VM/download" && apt-get -o APT::Sandbox::User=root download "$package" >/dev/null && dpkg -x ./*.deb "$KERNEL")
  rm -rf "$VM/download"
  touch "$KERNEL/.unpacked"
}

# module_files RELEASE MODULE…: the files of the modules and of all they depend on, in loading order.
module_files() {
  local release=$1 module; shift
  for module; do
    modprobe -d "$KERNEL" -S "$release" --show-depends "$module" || die "hack/vm/modules names $module, which $release does not have"
  done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }'
}

wanted_modules() { awk -v kind="$1" '$1 == kind { $1 = ""; print }' "$ROOT/hack/vm/modules"; }

make_initramfs() {
  local release tree=$VM/initramfs
  release=$(ls "$KERNEL/lib/modules")
  say "making the initramfs for $release"
  depmod -b "$KERNEL" "$release"
  # Modules are unpacked once here instead of slowly in every emulated guest.
  # shellcheck disable=SC2046
  module_files "$release" $(wanted_modules boot) $(wanted_modules load) $(wanted_modules ready) | { grep '\.xz$' || true; } | xargs -r xz -d
  depmod -b "$KERNEL" "$release"
  rm -rf "$tree"
  mkdir -p "$tree"/{bin,dev,proc,sys,lower,rw,newroot,mods}
  cp /bin/busybox "$tree/bin/"
  install -m 755 "$ROOT/hack/vm/init" "$tree/init"
  local file
  # shellcheck disable=SC2046
  module_files "$release" $(wanted_modules boot) | while read -r file; do
    cp "$file" "$tree/mods/"
    basename "$file"
  done >"$tree/order"
  (cd "$tree" && find . | cpio -o -H newc 2>/dev/null | gzip -1) >"$VM/initrd.gz.tmp"
  mv "$VM/initrd.gz.tmp" "$VM/initrd.gz"
  rm -rf "$tree"
}

# qemu_command ARG…: sets QEMU to the command line of the emulator, the guest's console on standard output.
qemu_command() {
  local nics=() i
  for ((i = 0; i < ${NICS:-0}; i++)); do
    nics+=(-netdev "hubport,id=hub$i,hubid=0" -device "virtio-net-pci,netdev=hub$i,mac=52:54:00:ae:00:0$i")
  done
  QEMU=(qemu-system-x86_64 -accel "${VM_ACCEL:-tcg,thread=multi,tb-size=1024}" -cpu max -smp "${SMP:-2}" -m "${MEM:-4096}"
    -display none -no-reboot -nodefaults -serial stdio
    -kernel "$(echo "$KERNEL"/boot/vmlinuz-*)" -initrd "$VM/initrd.gz"
    -append "console=ttyS0 quiet panic=-1 mitigations=off nokaslr audit=0 net.ifnames=0 aoecsi.guest=$ROOT/hack/vm/guest.sh aoecsi.modules=$KERNEL/lib/modules"
    -object rng-random,id=rng,filename=/dev/urandom -device virtio-rng-pci,rng=rng
    -fsdev local,id=host,path=/,security_model=none,multidevs=remap,readonly=on
    -device virtio-9p-pci,fsdev=host,mount_tag=host
    -fsdev "local,id=results,path=$RESULTS,security_model=none,multidevs=remap"
    -device virtio-9p-pci,fsdev=results,mount_tag=results
    "${nics[@]}" "$@")
}

# prepare SCRIPT: fills the shared directory with what the guest runs.
prepare() {
  mkdir -p "$RESULTS/.vm"
  RESULTS=$(realpath "$RESULTS")
  rm -f "$RESULTS/.vm/status"
  cp "$1" "$RESULTS/.vm/script"
  local assignment
  { printf 'export AOE_CSI_VM=1\n'; for assignment in ${ENV:-}; do printf 'export %q\n' "$assignment"; done; } >"$RESULTS/.vm/env"
}

run() {
  [ $# -ge 1 ] || die "usage: vm.sh run SCRIPT [QEMU ARG…]"
  local script status; script=$(realpath "$1"); shift
  [ -r "$script" ] || die "cannot read $script"
  need_root
  build
  if [ -z "${RESULTS:-}" ]; then
    RESULTS=$(mktemp -d "$VM/run.XXXXXX")
    trap 'rm -rf "$RESULTS"' EXIT
  fi
  prepare "$script"
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
  build
  RESULTS=${RESULTS:-$(mktemp -d "$VM/run.XXXXXX")}
  local script; script=$(mktemp)
  echo 'exec setsid -c bash -i </dev/ttyS0 >/dev/ttyS0 2>&1' >"$script"
  prepare "$script"
  rm "$script"
  stty -icanon -echo -isig 2>/dev/null || true
  trap 'stty sane 2>/dev/null; rm -rf "$RESULTS"' EXIT
  qemu_command "$@"
  "${QEMU[@]}" || true
}

command=${1:-}
[ $# -eq 0 ] || shift
case $command in
  build | run | shell) "$command" "$@" ;;
  *) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit 2 ;;
esac
