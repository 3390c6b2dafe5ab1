# shellcheck shell=bash
# Sourced by every script of hack/: where things are, how progress and errors are printed, how to wait.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
CACHE=${AOE_CSI_CACHE:-$HOME/.cache/aoe-csi}
BIN=$CACHE/bin
export ROOT CACHE BIN
# shellcheck source=../versions.env
source "$ROOT/hack/versions.env"

# Debian's root may come without the sbin directories, and Go is usually unpacked to /usr/local/go.
export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/local/go/bin

say() { printf '%s %s\n' "$(date +%H:%M:%S)" "$*" >&2; }
die() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

need_root() { [ "$(id -u)" -eq 0 ] || die "must run as root (VMs, network namespaces and packages need it)"; }

# wait_for SECONDS WHAT COMMAND…: polls COMMAND until it succeeds. Says what it waited for when it gives up.
wait_for() {
  local limit=$1 what=$2 end; shift 2
  end=$((SECONDS + limit))
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || { say "gave up after ${limit} s waiting for $what"; return 1; }
    sleep 0.5
  done
}

# alive PIDFILE: is the process that the file names running?
alive() { [ -s "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null; }

# stop_pid PIDFILE [SECONDS]: ends one process that we started, first kindly; removes the file.
stop_pid() {
  local pid end
  [ -s "$1" ] || { rm -f "$1"; return 0; }
  pid=$(cat "$1"); end=$((SECONDS + ${2:-5}))
  kill "$pid" 2>/dev/null || true
  while kill -0 "$pid" 2>/dev/null; do
    [ $SECONDS -lt $end ] || { kill -9 "$pid" 2>/dev/null || true; sleep 0.2; break; }
    sleep 0.1
  done
  rm -f "$1"
}

# static_go_build DIR OUT PACKAGE [LDFLAGS]: a static, stripped binary, built in the module at DIR with its committed go.sum.
static_go_build() {
  (cd "$1" && CGO_ENABLED=0 go build -mod=readonly -ldflags "-s -w ${4:-}" -o "$2.tmp" "$3" && mv "$2.tmp" "$2")
}
