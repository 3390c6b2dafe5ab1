#!/usr/bin/env bash
# The deterministic simulation (pkg/sim).
#   sim.sh run     SEEDS=10000 seeds from FROM=1 on, on all processors; with SEED=n that one, with a trace
#   sim.sh bugs    plants each bug of pkg/sim/bugs and prints how many seeds it took to find it
set -euo pipefail
source "$(dirname "$0")/lib/common.sh"
cd "$ROOT"
export CGO_ENABLED=0

case ${1:-} in
  # With the tag, a frame that is freed is poisoned.
  run)
    if [ -n "${SEED:-}" ]; then set -- -seed "$SEED"; else set -- -seeds "${SEEDS:-10000}" -from "${FROM:-1}"; fi
    exec go test -count=1 -timeout 60m -tags invariants ./pkg/sim -run 'TestSeeds$' -v -args "$@" ;;
  bugs) exec go test -count=1 -timeout 60m ./pkg/sim/bugs -v -args -find ;;
  *) sed -n '2,4s/^# //p' "$0"; exit 1 ;;
esac
