# shellcheck shell=bash
# Sourced by cluster.sh: the files that a node is configured with. They are written here and only read in the node, where
# every process that is started costs a tenth of a second of emulation.

# node_config NAME DIR: fills the node's shared directory, which it sees as /results.
node_config() {
  local name=$1 dir=$2 n; n=$(node_number "$name")
  mkdir -p "$dir/cni"
  cp "$STATE/$name.kubeconfig" "$dir/kubeconfig"
  ip_commands "$n" >"$dir/ip.batch"
  nat_rules "$n" >"$dir/iptables"
  cni_network "$n" >"$dir/cni/10-lab.conflist"
  cat >"$dir/containerd.toml" <<X
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$PAUSE_IMAGE"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/results/cni"
X
  cat >"$dir/kubelet.yaml" <<X
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
}

# ip_commands N: addresses and routes. There is no DNS: a lookup fails at once instead of after its timeout.
ip_commands() {
  local other
  echo "link set eth0 up"
  echo "addr add $(node_address "$1")/24 dev eth0"
  echo "link set eth1 up"
  echo "route add default via $API_ADDRESS"
  echo "route add unreachable $CLUSTER_DNS"
  for other in 1 2 3 4 5 6 7 8 9; do
    [ "$other" = "$1" ] || echo "route add $(node_pods "$other") via $(node_address "$other")"
  done
}

# nat_rules N: the one service that pods need, instead of a kube-proxy, and the way out for pods.
nat_rules() {
  local to="-d $API_SERVICE -p tcp --dport 443 -j DNAT --to-destination $API_ADDRESS:$API_PORT"
  printf '%s\n' '*nat' "-A PREROUTING $to" "-A OUTPUT $to" "-A POSTROUTING -s $(node_pods "$1") ! -d 10.88.0.0/16 -j MASQUERADE" COMMIT
}

cni_network() {
  cat <<X
{"cniVersion": "1.0.0", "name": "lab", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "$(node_pods "$1")"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
X
}
