#!/usr/bin/env bash
# Runs Go tests in a VM with ublk, NBD and the kernel's aoe driver.
#
#   vm-test.sh NAME… [-- TEST FLAGS]    e.g.  vm-test.sh interop -- -run TestVblade -count 2
#
# NAME is a package under test/vm, built with the tag `vm`. The test binaries and aoe-csi are built on the host and lie in
# PATH in the guest; a test runs in its package's directory as root of the guest. Output appears as it comes and, with
# whatever the test writes to $AOE_CSI_RESULTS, in $CACHE/results/vm/NAME on the host. Packages share one guest, one after the other,
# except those that have a vm.env, which says what machine they need. A package's build.sh builds what else it wants into the directory given.
# A failed test, a guest that dies and a timeout all end in a non-zero status.
#
#   TIMEOUT=900                  seconds for each package
#   SMP=2 MEM=4096 NICS=0        see vm.sh
#   FRONTEND=ublk|nbd            runs everything with that front end
#   FULL=1                       runs in full what is shortened otherwise
#   HOURS=1 SEED=n               how long "soak" takes, and its order of events
#   AOE_CSI_RACE=1               build with the race detector (about five times slower in the guest)
set -euo pipefail
source "$(dirname "$0")/lib/common.sh"

names=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do names+=("$1"); shift; done
[ $# -eq 0 ] || shift
[ ${#names[@]} -gt 0 ] || die "usage: vm-test.sh NAME… [-- TEST FLAGS]; NAME is one of: $(cd "$ROOT/test/vm" 2>/dev/null && echo *)"
for name in "${names[@]}"; do
  compgen -G "$ROOT/test/vm/$name/*_test.go" >/dev/null || die "no tests in test/vm/$name"
done
need_root
"$ROOT/hack/vm.sh" build

# run_in_vm FLAGS NAME…: builds and runs packages in one guest. FLAGS is a quoted list. Called under ||, where set -e does nothing.
run_in_vm() {
  local flags=$1 name; shift
  export RESULTS=$CACHE/results/vm TIMEOUT=${TIMEOUT:-900} CGO_ENABLED=0
  local bin; bin=$(mktemp -d "$CACHE/vm/bin.XXXXXX")
  # shellcheck disable=SC2064
  trap "rm -rf '$bin'" EXIT
  say "vm-test $*: building"
  local race=()
  [ -z "${AOE_CSI_RACE:-}" ] || { race=(-race); CGO_ENABLED=1; }
  (cd "$ROOT" && go build "${race[@]}" -o "$bin/aoe-csi" ./cmd/aoe-csi) || return
  (cd "$ROOT" && go test -c "${race[@]}" -tags vm -o "$bin/" "${@/#/./test/vm/}") || return
  for name; do
    [ ! -e "$ROOT/test/vm/$name/build.sh" ] || "$ROOT/test/vm/$name/build.sh" "$bin" || return
  done
  {
    printf 'export PATH=%q:$PATH AOE_CSI_BIN=%q FRONTEND=%q FULL=%q HOURS=%q SEED=%q\nstatus=0\n' "$bin" "$bin/aoe-csi" "${FRONTEND:-}" "${FULL:-}" \
      "${HOURS:-}" "${SEED:-}"
    for name; do
      printf 'export AOE_CSI_RESULTS=/results/%q\ncd %q || exit\n' "$name" "$ROOT/test/vm/$name"
      # The pipe's status is the test's; the log on the share is what the counters read.
      printf '%s.test -test.v -test.timeout=%ds %s 2>&1 | tee /results/%s/test.log; [ ${PIPESTATUS[0]} -eq 0 ] || status=1\n' \
        "$name" "$TIMEOUT" "$flags" "$name"
    done
    printf 'exit $status\n'
  } >"$bin/script"
  # One guest at a time: emulated ones side by side make each other miss their deadlines.
  exec {lock}>"$CACHE/vm/test.lock"
  flock -n "$lock" || { say "vm-test $*: waiting for another VM test"; flock "$lock"; }
  for name; do rm -rf "${RESULTS:?}/$name"; mkdir -p "$RESULTS/$name"; done
  say "vm-test $*: booting"
  TIMEOUT=$((TIMEOUT * $# + 60)) "$ROOT/hack/vm.sh" run "$bin/script"
}

flags=$([ $# -eq 0 ] || printf ' %q' "${@/#-/-test.}")
alike=() failed=
for name in "${names[@]}"; do
  if [ -e "$ROOT/test/vm/$name/vm.env" ]; then
    # shellcheck disable=SC1090
    (source "$ROOT/test/vm/$name/vm.env" && run_in_vm "$flags" "$name") || failed=1
  else
    alike+=("$name")
  fi
done
[ ${#alike[@]} -eq 0 ] || (run_in_vm "$flags" "${alike[@]}") || failed=1
[ -z "$failed" ] || die "some tests failed; logs are in $CACHE/results/vm"
