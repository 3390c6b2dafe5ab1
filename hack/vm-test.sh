#!/usr/bin/env bash
# Runs Go tests in a VM with ublk, NBD and the kernel's aoe driver.
#
#   vm-test.sh NAME… [-- TEST FLAGS]    e.g.  vm-test.sh interop -- -run TestVblade -count 2
#
# NAME is a package under test/vm, built with the tag `vm`. The test binaries and aoe-csi are built on the host and lie in
# PATH in the guest; a test runs in its package's directory as root of the guest. Output appears as it comes and, with
# whatever the test writes to /results ($AOE_CSI_RESULTS in the guest), in $CACHE/results/vm-NAME on the host.
# A failed test, a guest that dies and a timeout all end in a non-zero status.
#
#   TIMEOUT=900 SMP=2 MEM=4096 NICS=0   see vm.sh; a package's vm.env says what it needs
#   FRONTEND=ublk|nbd                   runs everything with that front end
#   FULL=1                              runs in full what is shortened otherwise
#   AOE_CSI_RACE=1                      build with the race detector (about five times slower in the guest)
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

# run_in_vm NAME FLAG…: builds and runs one package's tests. Called under ||, where set -e does nothing.
run_in_vm() {
  local name=$1; shift
  # shellcheck disable=SC1090
  [ ! -e "$ROOT/test/vm/$name/vm.env" ] || source "$ROOT/test/vm/$name/vm.env"
  export TIMEOUT=${TIMEOUT:-900}
  local results=$CACHE/results/vm-$name
  local bin; bin=$(mktemp -d "$CACHE/vm/bin.XXXXXX")
  # shellcheck disable=SC2064
  trap "rm -rf '$bin'" EXIT
  say "vm-test $name: building"
  export CGO_ENABLED=0
  local race=()
  [ -z "${AOE_CSI_RACE:-}" ] || { race=(-race); export CGO_ENABLED=1; }
  if [ -d "$ROOT/cmd/aoe-csi" ]; then (cd "$ROOT" && go build "${race[@]}" -o "$bin/aoe-csi" ./cmd/aoe-csi) || return; fi
  (cd "$ROOT" && go test -c "${race[@]}" -tags vm -o "$bin/$name.test" "./test/vm/$name") || return
  rm -rf "$results"
  mkdir -p "$results"
  {
    printf 'export PATH=%q:$PATH AOE_CSI_BIN=%q AOE_CSI_RESULTS=/results\n' "$bin" "$bin/aoe-csi"
    printf 'export FRONTEND=%q FULL=%q\n' "${FRONTEND:-}" "${FULL:-}"
    printf 'cd %q || exit\n' "$ROOT/test/vm/$name"
    printf '%s.test -test.v -test.timeout=%ds' "$name" $((TIMEOUT - 60))
    printf ' %q' "${@/#-/-test.}"
    # The pipe's status is the test's; the log on the share is what the counters read.
    printf ' 2>&1 | tee /results/test.log; exit ${PIPESTATUS[0]}\n'
  } >"$bin/script"
  # One guest at a time: emulated ones side by side make each other miss their deadlines.
  exec {lock}>"$CACHE/vm/test.lock"
  flock -n "$lock" || { say "vm-test $name: waiting for another VM test"; flock "$lock"; }
  say "vm-test $name: booting"
  RESULTS=$results "$ROOT/hack/vm.sh" run "$bin/script"
}

failed=()
for name in "${names[@]}"; do
  (run_in_vm "$name" "$@") || failed+=("$name")
done
[ ${#failed[@]} -eq 0 ] || die "failed: ${failed[*]} (logs in $CACHE/results/vm-NAME)"
