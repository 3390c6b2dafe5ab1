#!/bin/bash
# First process of the guest once the host's root is in place: finishes the set-up, runs /results/.vm/script, leaves its
# exit status in /results/.vm/status and powers off.
here=$(dirname "$(realpath "$0")")
export PATH=/usr/local/sbin:/usr/local/bin:/usr/local/go/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t cgroup2 none /sys/fs/cgroup
mount --make-rshared /
ip link set lo up

# The unpacked kernel package stands in for the modules of the host's own kernel.
release=$(uname -r)
modules=$(sed -n 's/.*aoecsi.modules=\([^ ]*\).*/\1/p' /proc/cmdline)
mkdir -p "/usr/lib/modules/$release"
mount --bind "/lower$modules/$release" "/usr/lib/modules/$release"
mkdir -p /etc/modprobe.d
echo 'options nbd nbds_max=16 max_part=0' >/etc/modprobe.d/aoe-csi-vm.conf
# shellcheck disable=SC2046
modprobe -a $(awk '$1 == "load" { $1 = ""; print }' "$here/modules") || echo "vm: some modules did not load"

cd / || exit
source /results/.vm/env
bash /results/.vm/script
echo $? >/results/.vm/status
sync
dmesg -n 1
echo o >/proc/sysrq-trigger
sleep 60
