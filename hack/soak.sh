#!/usr/bin/env bash
# Lives with volumes for HOURS (1) in a VM while processes are killed, cables pulled and frames lost, late, twice and out of order, and
# puts what it counted into docs/soak.md. SEED=n repeats an order of events.
set -euo pipefail
source "$(dirname "$0")/lib/common.sh"
need_root
"$ROOT/hack/deps.sh" vm
"$ROOT/hack/vm-test.sh" soak
{
  cat <<X
# The last soak

\`make soak HOURS=…\` lives with three volumes in a VM: they are made, attached through ublk and NBD, loaded by fio with checksums, formatted, used and checked, stamped and
read back, grown, detached and deleted in random order, while initiator and target are killed, cables pulled, and netem loses, delays, doubles and
reorders frames. This is what the last run counted; it fails at the first error.

X
  cat "$CACHE/results/vm/soak/summary.md"
} >"$ROOT/docs/soak.md"
say "docs/soak.md is written"
