# shellcheck shell=bash
# Sourced by vm.sh and cluster.sh: the emulator, kernel and initramfs of our VMs, and the command line that boots one.

VM=$CACHE/vm
KERNEL=$VM/kernel
EMULATOR=$VM/qemu

vm_build() {
  mkdir -p "$VM"
  exec 8>"$VM/build.lock"
  flock 8
  if ! vm_up_to_date; then
    "$ROOT/hack/deps.sh" vm
    unpack_emulator
    unpack_kernel
    make_initramfs
  fi
  exec 8>&-
}

vm_up_to_date() {
  [ -e "$EMULATOR/.unpacked" ] && [ -e "$VM/initrd" ] && [ "$(vm_inputs)" = "$(cat "$VM/initrd.inputs" 2>/dev/null)" ]
}

# unpack_emulator: QEMU from Debian 12's backports, unpacked beside the kernel. Debian 12's own, 7.2, emulates code that
# changes itself wrongly on several processors: where a kernel switches one of its static keys (the first NBD socket, the
# first memory cgroup, a trace point) it may die of "Oops: int3" or a double fault. Switching trace points under load
# killed two guests of two within 10 s with 7.2, and none of three in a minute with 10.0. Its libraries and ROMs are those of deps.sh.
unpack_emulator() {
  [ ! -e "$EMULATOR/.unpacked" ] || return 0
  local apt=$VM/apt
  say "downloading and unpacking QEMU from bookworm-backports"
  rm -rf "$apt" "$EMULATOR"
  mkdir -p "$apt"/{lists,cache,download}
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${DEBIAN_MIRROR:-http://deb.debian.org/debian} bookworm-backports main" >"$apt/sources.list"
  local options=(-o "Dir::Etc::SourceList=$apt/sources.list" -o Dir::Etc::SourceParts=- -o "Dir::State::Lists=$apt/lists"
    -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=root)
  apt-get "${options[@]}" update -q >"$apt/log" 2>&1 &&
    (cd "$apt/download" && apt-get "${options[@]}" -t bookworm-backports download qemu-system-x86 qemu-system-common qemu-system-data seabios) >>"$apt/log" 2>&1 ||
    { tail -5 "$apt/log" >&2; die "cannot get QEMU from bookworm-backports; set DEBIAN_MIRROR where http://deb.debian.org/debian is out of reach"; }
  local package
  for package in "$apt"/download/*.deb; do dpkg -x "$package" "$EMULATOR"; done
  rm -rf "$apt"
  "$(emulator)" --version >/dev/null || die "the unpacked QEMU does not start: hack/deps.sh vm installs the libraries it needs"
  touch "$EMULATOR/.unpacked"
}

emulator() { echo "$EMULATOR/usr/bin/qemu-system-x86_64"; }

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

# vm_inputs: what the initramfs is made from, by content, since a clone gives every file a new date.
vm_inputs() { cat "$ROOT/hack/vm/init" "$ROOT/hack/vm/modules" | sha256sum; }

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
  module_files "$release" $(wanted_modules boot) $(wanted_modules test) $(wanted_modules ready) | { grep '\.xz$' || true; } | xargs -r xz -d
  depmod -b "$KERNEL" "$release"
  rm -rf "$tree"
  mkdir -p "$tree"/{bin,dev,proc,sys,lower,rw,newroot,mods}
  cp /bin/busybox "$tree/bin/"
  install -m 755 "$ROOT/hack/vm/init" "$tree/init"
  local file kind
  for kind in boot test; do
    # shellcheck disable=SC2046
    module_files "$release" $(wanted_modules $kind) | while read -r file; do
      [ ! -e "$tree/mods/$(basename "$file")" ] || continue # "boot" has loaded it
      cp "$file" "$tree/mods/"
      basename "$file"
    done >"$tree/order.$kind"
  done
  (cd "$tree" && find . | cpio -o -H newc 2>/dev/null) >"$VM/initrd.tmp"
  mv "$VM/initrd.tmp" "$VM/initrd"
  vm_inputs >"$VM/initrd.inputs"
  rm -rf "$tree"
}

# qemu_command ARG…: sets QEMU to the command line of the emulator, the guest's console on standard output. Reads RESULTS
# (the shared directory), SMP, MEM, NICS, VM_ACCEL and VM_APPEND (more for the kernel's command line).
#
# "maxcpus": hack/vm/init starts the other processors when devices are set up. Where one processor touches a device while another changes the map of
# memory (a kernel's look at PCI's registers does), QEMU up to 10.0 may look it up in the wrong map and die: "iotlb_to_section: Assertion". noreplace-smp keeps
# a kernel that begins with one processor from patching its locks for that.
qemu_command() {
  local nics=() i
  for ((i = 0; i < ${NICS:-0}; i++)); do
    nics+=(-netdev "hubport,id=hub$i,hubid=0" -device "virtio-net-pci,netdev=hub$i,mac=52:54:00:ae:00:0$i,romfile=")
  done
  QEMU=("$(emulator)" -L "$EMULATOR/usr/share/qemu" -L "$EMULATOR/usr/share/seabios" -accel "${VM_ACCEL:-tcg,thread=multi,tb-size=1024}" -cpu max -smp "${SMP:-2}" -m "${MEM:-4096}"
    -display none -no-reboot -nodefaults -serial stdio
    -kernel "$(echo "$KERNEL"/boot/vmlinuz-*)" -initrd "$VM/initrd"
    -append "console=ttyS0 quiet panic=-1 mitigations=off nokaslr audit=0 net.ifnames=0 maxcpus=1 noreplace-smp aoecsi.guest=$ROOT/hack/vm/guest.sh aoecsi.modules=$KERNEL/lib/modules${VM_APPEND:+ $VM_APPEND}"
    -object rng-random,id=rng,filename=/dev/urandom -device virtio-rng-pci,rng=rng
    -fsdev local,id=host,path=/,security_model=none,multidevs=remap,readonly=on
    -device virtio-9p-pci,fsdev=host,mount_tag=host
    -fsdev "local,id=results,path=$RESULTS,security_model=none,multidevs=remap"
    -device virtio-9p-pci,fsdev=results,mount_tag=results
    "${nics[@]}" "$@")
}

# vm_prepare SCRIPT: fills the shared directory RESULTS with what the guest runs.
vm_prepare() {
  mkdir -p "$RESULTS/.vm"
  RESULTS=$(realpath "$RESULTS")
  rm -f "$RESULTS/.vm/status"
  cp "$1" "$RESULTS/.vm/script"
  local assignment
  { printf 'export AOE_CSI_VM=1\n'; for assignment in ${ENV:-}; do printf 'export %q\n' "$assignment"; done; } >"$RESULTS/.vm/env"
}
