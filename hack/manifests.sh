#!/usr/bin/env bash
# Renders charts/aoe-csi with its default values into manifests/, for people who install without Helm.
#   manifests.sh            writes manifests/aoe-csi.yaml
#   manifests.sh --check    fails, with the difference, when the file is not what the chart renders
set -euo pipefail
source "$(dirname "$0")/lib/common.sh"
OUT=$ROOT/manifests/aoe-csi.yaml

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
  "$HELM" template aoe-csi "$ROOT/charts/aoe-csi" --namespace aoe-csi --include-crds --no-hooks \
    --kube-version "$KUBERNETES_VERSION" --set uninstallCheck.enabled=false |
    sed -e '/^ *helm.sh\/chart: /d' -e 's#^\( *app.kubernetes.io/managed-by: \)Helm$#\1manifests#' -e 's/[ \t]*$//'
}

"$ROOT/hack/binaries.sh" build helm
HELM=$("$ROOT/hack/binaries.sh" path)/helm
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
render >"$work/aoe-csi.yaml"
case ${1:-} in
  '') mkdir -p "$(dirname "$OUT")" && cp "$work/aoe-csi.yaml" "$OUT" ;;
  --check)
    diff -u "$OUT" "$work/aoe-csi.yaml" || die "manifests/ is not what the chart renders: run hack/manifests.sh" ;;
  *) die "usage: manifests.sh [--check]" ;;
esac
