#!/usr/bin/env bash
# Measures aoe-csi against what a user would pick instead, judges the figures, and writes docs/bench. Leave the machine
# alone meanwhile: about 15 minutes.
#   bench.sh             over veth on this machine, then in a VM
#   bench.sh full        how cost grows with depth, volumes, frame size and loss, over veth, and iSCSI in a VM; about 20 minutes
#   bench.sh profile     where the time of the jobs in the VM goes, by perf and pprof, into docs/bench/profile.md; about 5 minutes
#   bench.sh native|vm   one of the two, judged alone and left in $CACHE/results/bench instead of docs/bench
#
#   BENCH_RUNS=3 BENCH_SECONDS=4   of each job in the VM
#   BENCH_ONLY=ublk,open-iscsi     only stacks with one of these in their name (a blank is written _)
set -euo pipefail
source "$(dirname "$0")/lib/common.sh"
source "$(dirname "$0")/lib/vm.sh"
cd "$ROOT"
need_root
"$ROOT/hack/deps.sh" bench
RESULTS=$CACHE/results/bench
mkdir -p "$RESULTS" "$BIN"
export CGO_ENABLED=0

native() {
  say "bench: native"
  rm -f "$RESULTS/native.json"
  go build -o "$BIN/aoe-csi" ./cmd/aoe-csi
  "$BIN/bench" native "$BIN/aoe-csi" "$RESULTS/native.json"
}

vm() {
  say "bench: in the VM"
  rm -f "$RESULTS/vm.json"
  ENV="BENCH_RUNS=${BENCH_RUNS:-3} BENCH_SECONDS=${BENCH_SECONDS:-4} BENCH_ONLY=${BENCH_ONLY:-}" TIMEOUT=${TIMEOUT:-1800} \
    "$ROOT/hack/vm-test.sh" bench
  cp "$CACHE/results/vm/bench/bench.json" "$RESULTS/vm.json"
}

profile() {
  "$ROOT/hack/deps.sh" profile
  say "profile: in the VM"
  ENV="BENCH_PROFILE=1" TIMEOUT=${TIMEOUT:-1800} "$ROOT/hack/vm-test.sh" bench -- -run 'TestProfile$'
  local dir=$CACHE/results/vm/bench out=docs/bench/profile.md processes process job pprof commit kernel cpu
  commit=$(git describe --tags --always --dirty) # before $out is written
  kernel=$(ls "$CACHE/vm/kernel/lib/modules")
  cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)
  {
    printf '# Where the time goes\n\nMade by `make bench-profile` at %s with %s in the VM, on %s; do not edit. ' "$commit" "$kernel" "$cpu"
    printf 'Looking costs something itself: no figure of speed is meant here.\nFor each job: '
    printf 'processes and functions by `perf record -a -g -e cpu-clock` as percent of both processors'"'"' time, then Go'"'"'s view of the two processes.\n'
    for processes in "$dir"/*.processes; do
      job=$(basename "$processes" .processes)
      printf '\n## %s\n\n```\n' "${job//-/ }"
      cat "$processes"
      printf '```\n\n```\n'
      cat "$dir/$job.functions"
      printf '```\n'
      for process in initiator target; do
        pprof=$dir/$job.$process.pprof
        printf '\nThe %s, pprof:\n\n```\n' "$process"
        go tool pprof -top -cum -nodecount=40 "$pprof" 2>/dev/null | sed -n '/Total samples/,$p' | sed 's/ *$//'
        printf '```\n'
      done
    done
  } >"$dir/profile.md"
  cp "$dir/profile.md" "$out"
  say "profile: $out"
}

# What the report names; the keys are these names in small letters.
versions() {
  export BENCH_VERSION_AOE_CSI BENCH_VERSION_FIO BENCH_VERSION_QEMU BENCH_VERSION_VM_KERNEL BENCH_VERSION_VBLADE BENCH_VERSION_NBD_SERVER BENCH_VERSION_TGT
  BENCH_VERSION_AOE_CSI=$(git describe --tags --always --dirty)
  BENCH_VERSION_FIO=$(fio --version)
  BENCH_VERSION_QEMU=$("$(emulator)" --version | head -1)
  BENCH_VERSION_VM_KERNEL=$(ls "$CACHE/vm/kernel/lib/modules")
  BENCH_VERSION_VBLADE=$(dpkg-query -W -f '${Version}' vblade)
  BENCH_VERSION_NBD_SERVER=$(dpkg-query -W -f '${Version}' nbd-server)
  BENCH_VERSION_TGT=$(dpkg-query -W -f '${Version}' tgt)
}

go build -o "$BIN/bench" ./hack/bench
case ${1:-all} in
  native | vm)
    "$1"
    versions
    "$BIN/bench" report "$RESULTS" "$RESULTS/$1.json" ;;
  profile) profile ;;
  full)
    BENCH_ONLY=${BENCH_ONLY:-ublk,open-iscsi} vm
    versions
    go build -o "$BIN/aoe-csi" ./cmd/aoe-csi
    "$BIN/bench" full "$BIN/aoe-csi" docs/bench "$RESULTS/vm.json" ;;
  all)
    native
    vm
    versions
    "$BIN/bench" report docs/bench "$RESULTS/native.json" "$RESULTS/vm.json" ;;
  *) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit 2 ;;
esac
