#!/usr/bin/env bash
# Boots the cluster, runs the tests of test/e2e in it, takes it down.
#   cluster-test.sh [TEST FLAGS]     e.g. -run TestMove
#   KEEP=1                           leave the cluster up, or use one that is up already
set -euo pipefail
source "$(dirname "$0")/lib/common.sh"
need_root
CLUSTER=$ROOT/hack/cluster.sh
LOG=$CACHE/results/cluster.log
mkdir -p "$CACHE/results"

"$ROOT/hack/deps.sh"
say "building the tests, aoe-csi and the images"
(cd "$ROOT" && CGO_ENABLED=0 go test -c -tags e2e -o "$BIN/e2e.test" ./test/e2e)
"$ROOT/hack/images.sh" build

if [ -n "${KEEP:-}" ] && "$CLUSTER" status >/dev/null 2>&1; then
  "$CLUSTER" import "$("$ROOT/hack/images.sh" path)/aoe-csi.tar"
else
  CLUSTER_WAIT=${CLUSTER_WAIT:-1800} "$CLUSTER" up
  [ -n "${KEEP:-}" ] || trap '"$CLUSTER" down' EXIT
fi
cd "$ROOT/test/e2e"
status=0
"$CLUSTER" run "$BIN/e2e.test" -test.v -test.timeout="${TIMEOUT:-3000}s" "${@/#-/-test.}" 2>&1 | tee "$LOG" || status=1
if [ $status -ne 0 ]; then
  "$CLUSTER" kubectl get pods,pvc,pv,volumeattachments,aoev -A -o wide >&2 || true
  "$CLUSTER" kubectl get events -A --sort-by=.lastTimestamp 2>/dev/null | tail -n 40 >&2 || true
  "$CLUSTER" logs >"$CACHE/results/cluster-nodes.log" 2>&1 || true
  say "the tests' log is $LOG, the machines' $CACHE/results/cluster-nodes.log"
fi
exit $status
