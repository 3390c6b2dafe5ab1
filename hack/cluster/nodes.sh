# shellcheck shell=bash
# Sourced by cluster.sh: nodes, each a VM. What a real node keeps over a reboot is on its disk: /var/lib/kubelet,
# /var/lib/containerd, /var/lib/aoe-csi.

node_dir() { echo "$STATE/nodes/$1"; }

# node_start NAME: boots a node in the background; its disk is copied from the template when there is none.
node_start() {
  local name=$1 n dir
  n=$(node_number "$name") || return
  dir=$(node_dir "$name")
  ! alive "$PIDS/$name" || die "$name is running already"
  mkdir -p "$dir/share"
  [ -e "$dir/disk.img" ] || cp --sparse=always "$TEMPLATE/disk.img" "$dir/disk.img"
  rm -f "$dir"/share/*.log
  node_config "$name" "$dir/share"
  taps_up "$n"
  printf 'exec bash %q %q %q %q %q\n' "/lower$ROOT/hack/cluster/guest.sh" "$name" "$(node_address "$n")" $SHELL_PORT \
    "/lower$PROGRAMS/kubelet" >"$dir/script"
  local RESULTS=$dir/share NICS=0 MEM=${NODE_MEM:-3072} SMP=${NODE_SMP:-2} ENV='' VM_APPEND=aoecsi.only=boot
  vm_prepare "$dir/script"
  # Unsafe caching: a killed emulator loses nothing, only a crash of this machine would.
  qemu_command \
    -netdev "tap,id=lan,ifname=tap$n,script=no,downscript=no" -device "virtio-net-pci,netdev=lan,mac=52:54:00:99:00:0$n,romfile=" \
    -netdev "tap,id=storage,ifname=stor$n,script=no,downscript=no" \
    -device "virtio-net-pci,netdev=storage,mac=52:54:00:99:01:0$n,host_mtu=9000,romfile=" \
    -drive "file=$dir/disk.img,format=raw,if=none,id=disk,cache=unsafe,discard=unmap,detect-zeroes=unmap" \
    -device virtio-blk-pci,drive=disk,serial=node-disk
  say "booting $name"
  background "$name" "${QEMU[@]}"
}

# node_ready NAME…: waits until the kubelets report Ready.
node_ready() {
  local name
  for name; do
    wait_for "${NODE_TIMEOUT:-180}" "$name to be Ready" node_is_ready "$name" || { node_diagnose "$name"; return 1; }
    say "$name is Ready"
  done
}

node_is_ready() {
  [ "$(kubectl get node "$1" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}' 2>/dev/null)" = True ]
}

# node_boot_id NAME: changes with every boot, once the kubelet has reported it.
node_boot_id() { kubectl get node "$1" -o 'jsonpath={.status.nodeInfo.bootID}' 2>/dev/null || true; }

node_has_rebooted() { [ "$(node_boot_id "$1")" != "$2" ] && node_is_ready "$1"; }

# node_reset NAME: pulls the plug, boots again from the same disk, waits for the new kubelet.
node_reset() {
  local before; before=$(node_boot_id "$1")
  node_kill "$1"
  node_start "$1"
  wait_for "${NODE_TIMEOUT:-180}" "$1 to be Ready again" node_has_rebooted "$1" "$before" || { node_diagnose "$1"; return 1; }
  say "$1 is Ready again"
}

node_diagnose() {
  local log
  log_tail "$1"
  for log in "$(node_dir "$1")"/share/*.log; do
    [ -e "$log" ] || continue
    echo "--- $log"
    tail -n 20 "$log"
  done >&2
}

# node_exec NAME COMMAND…: runs a shell command line as root of the node; output and exit status come back. The status ends it, not the
# connection's end: the node's socat was seen to keep that open, up to the hour of -t, after its shell had ended.
node_exec() {
  local name=$1 n line status='' out=() shell; shift
  n=$(node_number "$name") || return
  exec {shell}< <(printf '(\n%s\n) </dev/null\nprintf "\\n@@status %%d\\n" $?\nexit\n' "$*" |
    in_net socat -t 3600 - "TCP:$(node_address "$n"):$SHELL_PORT,connect-timeout=10" 2>/dev/null)
  local pid=$!
  while IFS= read -r line; do
    if [[ $line =~ ^'@@status '([0-9]+)$ ]]; then
      status=${BASH_REMATCH[1]}
      break
    fi
    out+=("$line")
  done <&"$shell"
  exec {shell}<&-
  pkill -P "$pid" 2>/dev/null || true
  # The line before the status is empty, or the end of an unfinished one.
  [ ${#out[@]} -eq 0 ] || [ -n "${out[-1]}" ] || unset 'out[-1]'
  [ ${#out[@]} -eq 0 ] || printf '%s\n' "${out[@]}"
  [ -n "$status" ] || { say "$name: no answer from its shell"; return 255; }
  return "$status"
}

# node_import NAME FILE…: loads image archives into the node's container runtime.
node_import() {
  local name=$1 file dir; shift
  dir=$(node_dir "$name")/share/import
  mkdir -p "$dir"
  for file; do
    cp "$file" "$dir/"
    node_exec "$name" "ctr -n k8s.io images import /results/import/$(basename "$file")" >/dev/null || return
    rm "$dir/$(basename "$file")"
  done
}

# node_kill NAME: as if somebody had pulled the plug.
node_kill() {
  [ -s "$PIDS/$1" ] || return 0
  kill -9 "$(cat "$PIDS/$1")" 2>/dev/null || true
  stop_pid "$PIDS/$1"
}
