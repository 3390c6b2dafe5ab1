# shellcheck shell=bash
# Sourced by cluster.sh: the cluster's network namespace. br0 carries API and pods; san0 is the storage network, with
# jumbo frames and no IP address at all.

in_net() { ip netns exec $NETNS "$@"; }

network_up() {
  network_down
  ip netns add $NETNS
  ip -n $NETNS link set lo up
  ip -n $NETNS link add br0 type bridge
  ip -n $NETNS addr add $API_ADDRESS/24 dev br0
  ip -n $NETNS link set br0 up
  ip -n $NETNS link add san0 mtu 9000 type bridge
  ip -n $NETNS link set san0 up
  in_net sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.san0.disable_ipv6=1
}

network_down() {
  ip netns list 2>/dev/null | grep -q "^$NETNS\b" || return 0
  ip netns del $NETNS
}

# taps_up N: the two interfaces of a node, tapN (pods, API) and storN (storage).
taps_up() {
  local n=$1 tap
  for tap in "tap$n" "stor$n"; do
    ip -n $NETNS link show "$tap" >/dev/null 2>&1 || in_net ip tuntap add "$tap" mode tap
  done
  ip -n $NETNS link set "tap$n" master br0 up
  ip -n $NETNS link set "stor$n" mtu 9000 master san0 up
  ip -n $NETNS route replace "$(node_pods "$n")" via "$(node_address "$n")"
}
