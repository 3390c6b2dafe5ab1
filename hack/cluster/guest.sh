#!/bin/bash
# Makes a Kubernetes node of a VM: disk, network, containerd, kubelet. Runs until the VM is killed.
#   guest.sh NAME PROGRAMS     the latter is a directory of the host
set -u
name=$1 programs=$2
here=$(dirname "$(realpath "$0")")
source "$here/env.sh"
n=$(node_number "$name")

# What a node keeps over a reboot.
mkdir -p /disk
mount -o discard /dev/vda /disk
for dir in kubelet containerd aoe-csi; do
  mkdir -p "/disk/$dir" "/var/lib/$dir"
  mount --bind "/disk/$dir" "/var/lib/$dir"
done
mount --make-rshared /
for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control; done

hostname "$name"
ip link set eth0 up
ip addr add "$(node_address "$n")/24" dev eth0
ip route add default via $API_ADDRESS
ip link set eth1 up
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.eth1.disable_ipv6=1
for other in 1 2 3 4 5 6 7 8 9; do
  [ "$other" = "$n" ] || ip route add "$(node_pods "$other")" via "$(node_address "$other")"
done
# The one service that pods need; instead of a kube-proxy.
for chain in PREROUTING OUTPUT; do
  iptables -t nat -A $chain -d $API_SERVICE -p tcp --dport 443 -j DNAT --to-destination $API_ADDRESS:$API_PORT
done
iptables -t nat -A POSTROUTING -s "$(node_pods "$n")" ! -d 10.88.0.0/16 -j MASQUERADE
# There is no DNS: a lookup fails at once instead of after its timeout.
ip route add unreachable $CLUSTER_DNS

# A root shell for the harness, on a network that nothing but this cluster is on.
socat -t 3600 "TCP-LISTEN:$SHELL_PORT,bind=$(node_address "$n"),reuseaddr,fork" EXEC:/bin/bash,stderr >/dev/null 2>&1 &

mkdir -p /etc/cni/net.d /etc/containerd /etc/kubernetes
cat >/etc/cni/net.d/10-lab.conflist <<X
{"cniVersion": "1.0.0", "name": "lab", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "$(node_pods "$n")"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
X
cat >/etc/containerd/config.toml <<X
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$(. "$here/../versions.env" && echo "$PAUSE_IMAGE")"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
X
cat >/etc/kubernetes/kubelet.yaml <<X
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
failSwapOn: false
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
enforceNodeAllocatable: []
resolvConf: ""
clusterDNS: [$CLUSTER_DNS]
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 50Mi}
X

containerd >/results/containerd.log 2>&1 &
for _ in $(seq 240); do [ ! -S /run/containerd/containerd.sock ] || break; sleep 0.5; done
exec "/lower$programs/kubelet" --config=/etc/kubernetes/kubelet.yaml --kubeconfig=/results/kubeconfig \
  --node-ip="$(node_address "$n")" >/results/kubelet.log 2>&1
