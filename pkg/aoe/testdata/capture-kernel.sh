#!/bin/bash
# Captures what the kernel's aoe driver sends to vblade, in a VM:
#   RESULTS=$PWD ../../../hack/vm.sh run capture-kernel.sh
# leaves kernel.pcap here; pcap-to-hex.sh makes lines of it.
set -euo pipefail
ip netns add target
ip link add eth7 address 02:00:00:00:00:01 type veth peer name peer netns target address 02:00:00:00:00:02
ip -n target link set peer up
ip link set eth7 up
sleep 2 # until the cable carries
head -c 1M /dev/zero | tr '\0' 'v' >/tmp/disk
ip netns exec target vblade 7 3 peer /tmp/disk &
sleep 1
tcpdump -i eth7 -U -w /results/kernel.pcap ether proto 0x88a2 &
sleep 2
modprobe aoe aoe_iflist=eth7
aoe-discover || true
for _ in $(seq 100); do [ -e /sys/block/etherd!e7.3 ] && break; sleep 0.1; done
udevadm settle 2>/dev/null || true
[ -e /dev/etherd/e7.3 ] && disk=/dev/etherd/e7.3 || disk=/dev/etherd!e7.3
[ -e "$disk" ] || { mknod /tmp/e7.3 b $(tr : ' ' <'/sys/block/etherd!e7.3/dev'); disk=/tmp/e7.3; }
dd if=$disk of=/dev/null bs=512 skip=1000 count=1 iflag=direct
dd if=$disk of=/dev/null bs=1024 skip=600 count=1 iflag=direct
head -c 1024 /dev/zero | tr '\0' 'w' >/tmp/w
dd if=/tmp/w of=$disk bs=1024 seek=300 count=1 oflag=direct
sync -f $disk || true
sleep 1
kill %2
wait %2 || true
