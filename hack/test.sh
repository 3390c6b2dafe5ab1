#!/usr/bin/env bash
# Runs suites of tests, one after the other, also when one fails. The last line is "N passed, N failed", summed over the
# suites; the exit status tells whether nothing failed.
#   test.sh [SUITE…]     default: all but static, fencing and flood, in this order
#
#   check    formatting, vet, drift                     unit     Go tests and simulations, no root
#   race     the same under the race detector           net      AF_PACKET in network namespaces
#   sanity   csi-sanity in a VM                         interop  vblade, kernel aoe, aoetools in a VM
#   faults   devices, loss, fencing in a VM             powercut power cuts of the target's disk in a VM
#   recovery SIGKILL, no memory, dead targets in a VM   cluster  the chart in a real Kubernetes
#   static   pools of LUNs that are there already       fencing, flood   parts of "net" that print figures
#
# "static" is in unit, net and interop, shortened; by itself it is run in full. CLUSTER=1 runs its part in the cluster, too.
# FRONTEND=ublk or nbd has the suites in VMs use that front end alone; FULL=1 runs in full what "faults", "powercut", "recovery", "fencing" and "cluster" shorten.
# Logs, and what tests left for inspection, are in $CACHE/results.
set -euo pipefail
source "$(dirname "$0")/lib/common.sh"
cd "$ROOT"
RESULTS=$CACHE/results
ALL=(check unit race net sanity interop faults powercut recovery cluster)
mkdir -p "$RESULTS" "$BIN"
# As the binary is built: one compilation serves all suites. The race detector alone needs C.
export CGO_ENABLED=0 FRONTEND FULL

# go_suite NAME ARG…: go test on this machine.
go_suite() {
  local name=$1; shift
  go test -json "$@" 2>&1 | tee "$RESULTS/$name.json" | "$BIN/testsum" -count "$RESULTS/$name.count"
}

# figures NAME ARG…: go test, with what the tests log, but not what the code under test does.
figures() {
  local name=$1; shift
  go test -json "$@" 2>&1 | tee "$RESULTS/$name.json" | "$BIN/testsum" -v -count "$RESULTS/$name.count" | grep -vE '^ *[IWE][0-9]{4} |^=== '
}

# static_suite: point by point what pools of LUNs that are there already have to show.
static_suite() {
  local status=0
  say "in namespaces: aoetools, 2,000 simulated targets, attaching without broadcasts"
  figures static-wire -count=1 -tags integration ./pkg/inband || status=1
  figures static-unicast -count=1 -tags integration -run '^TestAttachByUnicast$' ./pkg/shelf || status=1
  say "simulated: 1,000 runs with crashes, 50 claims at once, fencing, scrubbing, adoption"
  figures static-sim -count=1 -timeout 30m -run '^Test(Pool|FiftyClaims)' ./pkg/shelf -crash-runs 1000 || status=1
  say "in a VM: real vblades, restarts at every point"
  in_vm static-vblade ./pkg/shelf -test.run '^Test(PoolOfRealVblades|VbladeRestarts)$' -restart-rounds 10 || status=1
  say "in a VM: the kernel's driver and aoetools"
  VM_TESTS='^Test(InventoryAgrees|KernelHasIt)$' vm_suite static-vm interop || status=1
  set -- static-wire static-unicast static-sim static-vblade static-vm
  if [ -n "${CLUSTER:-}" ]; then
    "$ROOT/hack/cluster-test.sh" -run '^TestStaticPool$' || status=1
    count_log e2e "$RESULTS/cluster.log" >"$RESULTS/static-cluster.count"
    set -- "$@" static-cluster
  fi
  sum_counts static "$@"
  return $status
}

# fencing_suite: a hundred hand-overs between initiators in namespaces; with FULL=1 also between two nodes of a cluster.
fencing_suite() {
  local status=0
  go_suite fencing-segment -count=1 -tags integration -run TestFencing ./test/segment || status=1
  set -- fencing-segment
  if [ "${FULL:-}" = 1 ]; then
    "$ROOT/hack/cluster-test.sh" -run '^TestFencing$' || status=1
    count_log e2e "$RESULTS/cluster.log" >"$RESULTS/fencing-cluster.count"
    set -- "$@" fencing-cluster
  fi
  sum_counts fencing "$@"
  return $status
}

# sum_counts NAME PART…: the counts of a suite's parts.
sum_counts() {
  local name=$1 part passed=0 failed=0 p f; shift
  for part; do
    read -r p f <"$RESULTS/$part.count"
    passed=$((passed + p)) failed=$((failed + f))
  done
  echo "$passed $failed" >"$RESULTS/$name.count"
}

# vm_suite NAME PACKAGE…: test/vm packages. The console is shown as it comes; counted are the logs that the guest left.
vm_suite() {
  local name=$1 package status=0 passed=0 failed=0 p f; shift
  for package; do rm -f "$RESULTS/vm/$package/test.log"; done
  "$ROOT/hack/vm-test.sh" "$@" ${VM_TESTS:+-- -run "$VM_TESTS"} || status=1
  for package; do
    read -r p f <<<"$(count_log "vm/$package" "$RESULTS/vm/$package/test.log")"
    passed=$((passed + p)) failed=$((failed + f))
  done
  echo "$passed $failed" >"$RESULTS/$name.count"
  return $status
}

# in_vm NAME PACKAGE ARG…: the integration tests of a package that use this machine's network namespaces, in those of a VM.
in_vm() {
  local name=$1 package=$2 status=0; shift 2
  local dir=$RESULTS/vm/$name
  rm -rf "$dir"; mkdir -p "$dir"
  go test -c -tags integration -o "$BIN/$name.test" "$package" || return
  printf 'cd %q && %q -test.v%s >/results/test.log 2>&1\n' "$ROOT/$package" "$BIN/$name.test" "$(printf ' %q' "$@")" >"$dir/script"
  RESULTS=$dir "$ROOT/hack/vm.sh" run "$dir/script" || status=1
  grep -E '^ *(---|[a-z_]+_test\.go:)' "$dir/test.log" || true
  count_log "$package" "$dir/test.log" >"$RESULTS/$name.count"
  return $status
}

# count_log PACKAGE LOG: prints "PASSED FAILED" of a log of `go test -v`; a log that is not there is a failure.
count_log() {
  if [ ! -s "$2" ]; then echo "0 1"; return; fi
  go tool test2json -t -p "$1" <"$2" | "$BIN/testsum" -count "$RESULTS/.count" >/dev/null || true
  cat "$RESULTS/.count"
}

integration_packages() {
  git ls-files --cached --others --exclude-standard '*_integration_test.go' | xargs -r -n1 dirname | sort -u | sed 's#^#./#'
}

# other_vm_packages: what no other suite runs, so that a new package is not forgotten; the harness's own comes first. Benchmarks are
# run by hack/bench.sh, on a machine with nothing else to do.
other_vm_packages() {
  echo harness
  git ls-files --cached --others --exclude-standard 'test/vm/*_test.go' | cut -d/ -f3 | sort -u | grep -vxE 'harness|bench|sanity|interop|powercut|recovery|soak'
}

suite() {
  case $1 in
    check) COUNT=$RESULTS/check.count "$ROOT/hack/check.sh" ;;
    unit) go_suite unit ./... ;;
    race) CGO_ENABLED=1 go_suite race -race ./pkg/... ;;
    # shellcheck disable=SC2046
    net) need_root; "$ROOT/hack/deps.sh" vm; go_suite net -count=1 -tags integration $(integration_packages) ;;
    fencing) need_root; fencing_suite ;;
    flood) need_root; go_suite flood -count=1 -tags integration -run TestFlood ./test/segment ;;
    sanity) vm_suite sanity sanity ;;
    interop) vm_suite interop interop ;;
    # shellcheck disable=SC2046
    faults) [ "${FULL:-}" != 1 ] || export TIMEOUT=${TIMEOUT:-1800}; vm_suite faults $(other_vm_packages) ;;
    powercut) vm_suite powercut powercut ;;
    recovery) vm_suite recovery recovery ;;
    static) need_root; "$ROOT/hack/deps.sh" vm; rm -f "$RESULTS"/static-*.count; static_suite ;;
    cluster)
      local status=0 flags=(-skip TestStaticPool) # which "static" runs
      [ "${FULL:-}" != 1 ] || flags=()
      rm -f "$RESULTS/cluster.log"
      "$ROOT/hack/cluster-test.sh" "${flags[@]}" || status=1
      count_log e2e "$RESULTS/cluster.log" >"$RESULTS/cluster.count"
      return $status ;;
    *) die "no suite $1; there are: ${ALL[*]} static fencing flood" ;;
  esac
}

[ $# -gt 0 ] || set -- "${ALL[@]}"
"$ROOT/hack/deps.sh" unit
(cd "$ROOT" && go build -o "$BIN/testsum" ./hack/testsum)
passed=0 failed=0 began=$SECONDS
lines=()
for name; do
  started=$SECONDS status=0 p=0 f=0
  printf '\n=== %s ===\n' "$name"
  rm -f "$RESULTS/$name.count"
  (suite "$name") || status=1
  read -r p f <"$RESULTS/$name.count" 2>/dev/null || true
  # A suite that ended badly without naming a failed test did not get as far as its tests.
  [ $status -eq 0 ] || [ "$f" -gt 0 ] || f=1
  passed=$((passed + p)) failed=$((failed + f))
  lines+=("$(printf '%-8s %5d passed %4d failed %5d s' "$name" "$p" "$f" $((SECONDS - started)))")
  printf '=== %s\n' "${lines[-1]}"
done
printf '\n'
printf '%s\n' "${lines[@]}" "$((SECONDS - began)) s in all"
printf '%d passed, %d failed\n' "$passed" "$failed" | tee "$RESULTS/summary"
[ $failed -eq 0 ]
