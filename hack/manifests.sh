#!/usr/bin/env bash
# Renders charts/aoe-csi with its default values into manifests/, for people who install without Helm.
#   manifests.sh            writes manifests/aoe-csi.yaml, and manifests/pool.yaml as an example of a pool
#   manifests.sh --check    fails, with the difference, when a file is not what the chart renders
set -euo pipefail
source "$(dirname "$0")/lib/common.sh"
OUT=$ROOT/manifests

render() {
  cat <<X
# Rendered from charts/aoe-csi by hack/manifests.sh; edit the chart instead.
apiVersion: v1
kind: Namespace
metadata:
  name: aoe-csi
  labels:
    # Data plane and node plugin are privileged.
    pod-security.kubernetes.io/enforce: privileged
X
  # The uninstall check is a hook of Helm's; without Helm nothing would run it.
  template --include-crds --no-hooks --set uninstallCheck.enabled=false
}

render_pool() {
  cat <<X
# Rendered from charts/aoe-csi by hack/manifests.sh: a pool of the LUNs of shelf 9. Put in your shelf, slots and interface, and give the
# controller the argument --shelf-service=\$(NAMESPACE)/aoe-csi-pools.
X
  template --show-only templates/pools.yaml --set 'storageInterface={eth1},pools[0].shelf=9' --set-string 'pools[0].slots=0-15'
}

template() {
  "$HELM" template aoe-csi "$ROOT/charts/aoe-csi" --namespace aoe-csi --kube-version "$KUBERNETES_VERSION" "$@" |
    sed -e '/^ *helm.sh\/chart: /d' -e 's#^\( *app.kubernetes.io/managed-by: \)Helm$#\1manifests#' -e 's/[ \t]*$//'
}

"$ROOT/hack/binaries.sh" build helm
HELM=$("$ROOT/hack/binaries.sh" path)/helm
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
render >"$work/aoe-csi.yaml"
render_pool >"$work/pool.yaml"
case ${1:-} in
  '') mkdir -p "$OUT" && cp "$work"/*.yaml "$OUT/" ;;
  --check)
    diff -ru "$OUT" "$work" || die "manifests/ is not what the chart renders: run hack/manifests.sh" ;;
  *) die "usage: manifests.sh [--check]" ;;
esac
