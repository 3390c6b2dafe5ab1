#!/bin/bash
# Makes a Kubernetes node of a VM: disk, containerd, network, kubelet. Runs until the VM is killed. Uses as few processes as
# it can: emulation makes them dear.
#   guest.sh NAME ADDRESS SHELL_PORT KUBELET     with what config.sh left in /results
set -u
name=$1 address=$2 shell_port=$3 kubelet=$4

# What a node keeps over a reboot.
mkdir -p /disk /var/lib/kubelet /var/lib/containerd /var/lib/aoe-csi
mount -o discard /dev/vda /disk
for dir in kubelet containerd aoe-csi; do mount --bind /disk/$dir /var/lib/$dir; done
mount --make-rshared /
read -r controllers </sys/fs/cgroup/cgroup.controllers
echo "+${controllers// / +}" >/sys/fs/cgroup/cgroup.subtree_control
containerd --config /results/containerd.toml >/results/containerd.log 2>&1 &

echo "$name" >/proc/sys/kernel/hostname
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/ipv6/conf/eth1/disable_ipv6
ip -batch /results/ip.batch
iptables-restore </results/iptables
# A root shell for the harness, on a network that nothing but this cluster is on.
socat -t 3600 "TCP-LISTEN:$shell_port,bind=$address,reuseaddr,fork" EXEC:/bin/bash,stderr >/dev/null 2>&1 &

for _ in $(seq 600); do [ ! -S /run/containerd/containerd.sock ] || break; sleep 0.2; done
# Killed, it comes back, as under systemd.
while true; do
  "$kubelet" --config=/results/kubelet.yaml --kubeconfig=/results/kubeconfig --node-ip="$address" >>/results/kubelet.log 2>&1
  sleep 1
done
