#!/usr/bin/env bash
# A real Kubernetes on this machine: control plane as processes in a network namespace of its own, nodes as VMs.
#
#   cluster.sh up [NODE…]          start everything afresh (default: node1 node2) and wait until the nodes are Ready
#   cluster.sh wait                wait for the nodes, after an `up` with NO_WAIT=1 that returned when the API answered
#   cluster.sh down                stop everything that `up` started; nothing is left running
#   cluster.sh status              what runs
#   cluster.sh kubectl ARG…        kubectl as administrator
#   cluster.sh helm ARG…           helm as administrator
#   cluster.sh run COMMAND…        any command in the cluster's namespace, with KUBECONFIG and PATH set
#   cluster.sh import [FILE…]      load image archives on all nodes (default: all of hack/images.sh)
#   cluster.sh node NAME           boot one node (more) and wait until it is Ready
#   cluster.sh node-exec NAME CMD  run a shell command line as root of a node
#   cluster.sh node-kill NAME      pull the plug of a node
#   cluster.sh node-reset NAME     pull the plug and boot again from the same disk
#   cluster.sh logs [NAME]         the ends of the logs: control plane, consoles, kubelets
#
# One cluster at a time: `up` refuses while another is running, or waits for CLUSTER_WAIT seconds. State and logs are in
# $CACHE/cluster. NODE_MEM=3072 (MiB), NODE_SMP=2, NODE_DISK_SIZE=8G, NODE_TIMEOUT=180 (s) size the nodes.
set -euo pipefail
source "$(dirname "$0")/lib/common.sh"
source "$ROOT/hack/lib/vm.sh"
STATE=$CACHE/cluster
LOGS=$STATE/logs
PIDS=$STATE/pids
PROGRAMS=$BIN/third-party
source "$ROOT/hack/cluster/env.sh"
source "$ROOT/hack/cluster/network.sh"
source "$ROOT/hack/cluster/control-plane.sh"
source "$ROOT/hack/cluster/disk.sh"
source "$ROOT/hack/cluster/config.sh"
source "$ROOT/hack/cluster/nodes.sh"

kubectl() { in_net "$PROGRAMS/kubectl" --kubeconfig "$STATE/admin.kubeconfig" "$@"; }

# log_tail NAME…: the ends of logs, for a failure's diagnosis.
log_tail() {
  local name
  for name; do
    echo "--- $LOGS/$name.log"
    tail -n 15 "$LOGS/$name.log" 2>/dev/null || true
  done >&2
}

# running_nodes prints the names of nodes that have been started.
running_nodes() {
  local file
  for file in "$PIDS"/node*; do [ ! -e "$file" ] || ! alive "$file" || basename "$file"; done
}

up() {
  [ $# -gt 0 ] || set -- node1 node2
  need_root
  "$ROOT/hack/deps.sh"
  "$ROOT/hack/binaries.sh" build
  "$ROOT/hack/images.sh" build base sidecars
  vm_build
  mkdir -p "$LOGS" "$PIDS"
  # Every process of the cluster inherits the lock, so that it is held exactly as long as one of them lives.
  exec 9>"$CACHE/cluster.lock"
  flock -n 9 || [ "${CLUSTER_WAIT:-0}" -eq 0 ] || say "waiting up to $CLUSTER_WAIT s for the cluster that is running to end"
  flock -w "${CLUSTER_WAIT:-0}" 9 || die "a cluster is running already: cluster.sh down, or wait with CLUSTER_WAIT=SECONDS"
  # Half a cluster is of no use; its logs stay.
  trap 'status=$?; [ $status -eq 0 ] || { say "up failed: taking down what had started"; down; exit $status; }' EXIT
  down
  rm -rf "$STATE/nodes" "$LOGS"
  mkdir -p "$LOGS" "$PIDS"
  local started=$SECONDS name
  disk_template
  credentials
  network_up
  for name; do node_start "$name"; done
  say "starting the control plane"
  control_plane_up
  control_plane_ready
  if [ -n "${NO_WAIT:-}" ]; then
    say "the API answers after $((SECONDS - started)) s, nodes are booting"
    return
  fi
  node_ready "$@"
  say "cluster is up after $((SECONDS - started)) s; try: hack/cluster.sh kubectl get nodes -o wide"
}

down() {
  need_root
  local file
  for file in "$PIDS"/node*; do
    [ ! -e "$file" ] || node_kill "$(basename "$file")"
  done
  # Nothing of it is kept: told to end together, and not waited for long.
  for file in "$PIDS"/*; do [ ! -s "$file" ] || kill "$(cat "$file")" 2>/dev/null || true; done
  for file in "$PIDS"/*; do [ ! -e "$file" ] || stop_pid "$file" 1; done
  network_down
  rm -rf "$STATE/etcd" "$STATE"/nodes/*/disk.img
}

status() {
  local file any=
  for file in "$PIDS"/*; do
    [ -e "$file" ] || continue
    any=1
    if alive "$file"; then echo "$(basename "$file") runs, pid $(cat "$file")"; else echo "$(basename "$file") is dead"; fi
  done
  [ -n "$any" ] || { echo "no cluster is running"; return 1; }
  kubectl get nodes -o wide
}

import() {
  local name
  [ $# -gt 0 ] || set -- "$("$ROOT/hack/images.sh" path)"/*.tar
  for name in $(running_nodes); do
    say "importing $(basename -a "$@" | tr '\n' ' ')on $name"
    node_import "$name" "$@" || die "$name: import failed"
  done
}

run() {
  PATH=$PROGRAMS:$BIN:$PATH KUBECONFIG=$STATE/admin.kubeconfig AOE_CSI_CLUSTER=$ROOT/hack/cluster.sh \
    exec ip netns exec $NETNS "$@"
}

logs() {
  local name
  if [ $# -eq 0 ]; then
    log_tail etcd kube-apiserver kube-controller-manager kube-scheduler
    for name in $(running_nodes); do node_diagnose "$name"; done
  else
    for name; do case $name in node*) node_diagnose "$name" ;; *) log_tail "$name" ;; esac; done
  fi
}

command=${1:-}
[ $# -eq 0 ] || shift
case $command in
  up | down | status | import | run | logs | kubectl) "$command" "$@" ;;
  helm) run "$PROGRAMS/helm" "$@" ;;
  node) node_start "$1" && node_ready "$1" ;;
  wait) node_ready $(running_nodes) ;;
  node-exec) node_exec "$@" ;;
  node-kill) node_kill "$1" ;;
  node-reset) node_reset "$1" ;;
  *) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit 2 ;;
esac
