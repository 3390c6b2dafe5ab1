#!/usr/bin/env bash
# Fuzzes every parser and both state machines, one after the other.
#   fuzz.sh [run]    FUZZTIME=5m each; FUZZ=name for those whose package or name has that in it
#   fuzz.sh keep     adds the KEEP=12 shortest inputs of each that Go's cache has to testdata/fuzz, which unit tests run
#
# What finds something new is kept in Go's fuzz cache for the next run (go clean -fuzzcache removes it); an input that fails is left in the
# package's testdata/fuzz and is run by the unit tests from then on.
set -euo pipefail
source "$(dirname "$0")/lib/common.sh"
cd "$ROOT"
export CGO_ENABLED=0

# targets: "PACKAGE NAME" of each fuzz test.
targets() {
  git ls-files --cached --others --exclude-standard '*_test.go' | xargs grep -HoE '^func Fuzz[A-Za-z]+' |
    sed -E 's#^(.*)/[^/]+:func (.*)#./\1 \2#' | sort | grep -i -- "${FUZZ:-}"
}

run() {
  local package name status=0 out lines=()
  while read -r package name; do
    printf '=== %s %s\n' "$package" "$name"
    out=$(mktemp)
    go test -run '^$' -fuzz "^$name\$" -fuzztime "${FUZZTIME:-5m}" "$package" 2>&1 | tee "$out" | grep -v '^fuzz: elapsed' || true
    # Go sometimes takes the end of the time for a failure of the fuzzer (its issue 75804); an input that fails is always named.
    if grep -q '^ok' "$out" || { grep -q '^    context deadline exceeded$' "$out" && ! grep -q 'Failing input\|panic:' "$out"; }; then
      lines+=("$(sed -nE "s/^fuzz: elapsed: ([^,]+), execs: ([0-9]+).*\(total: ([0-9]+)\)/$name: \2 executions in \1, \3 inputs in the corpus, no failure/p" "$out" | tail -1)")
    else
      lines+=("$name: FAILED") status=1
    fi
    rm -f "$out"
  done < <(targets)
  [ ${#lines[@]} -gt 0 ] || die "no fuzz test has ${FUZZ:-} in its name"
  printf '\n'
  printf 'figure: %s\n' "${lines[@]}"
  return $status
}

keep() {
  local package name cache dir
  cache=$(go env GOCACHE)/fuzz/$(go list -m)
  while read -r package name; do
    [ -d "$cache/$package/$name" ] || continue
    dir=$package/testdata/fuzz/$name
    mkdir -p "$dir"
    # The shortest ones are the easiest to read; ls sorts by size.
    (cd "$cache/$package/$name" && ls -rS) | head -n "${KEEP:-12}" | while read -r file; do cp -n "$cache/$package/$name/$file" "$dir/"; done
  done < <(targets)
}

case ${1:-run} in
  run) run ;;
  keep) keep ;;
  *) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit 1 ;;
esac
