#!/usr/bin/env bash
# Checks of the source tree that run nothing of it. Each one is reported; all are run even if one fails.
#   check.sh            formatting, vet, module and version drift, generated files, manifests, shell syntax
#   check.sh --lint     golangci-lint and `go mod tidy -diff` as well (the first build of the linter takes minutes)
#   COUNT=FILE          leaves "PASSED FAILED" there
set -euo pipefail
source "$(dirname "$0")/lib/common.sh"
cd "$ROOT"
passed=0 failed=0
export CGO_ENABLED=0 # as everything is built: one compilation serves all

check() {
  local what=$1 out; shift
  if out=$("$@" 2>&1); then
    passed=$((passed + 1)); echo "ok    $what"
  else
    failed=$((failed + 1)); echo "FAIL  $what"; sed 's/^/      /' <<<"$out"
  fi
}

go_files() { git ls-files --cached --others --exclude-standard '*.go'; }
formatted() { local bad; bad=$(go_files | xargs -r ls -d 2>/dev/null | xargs -r gofmt -s -l); echo "$bad"; [ -z "$bad" ]; }
vet() { go vet "$@"; }
vet_image() { (cd hack/image && go vet -mod=readonly ./... && go test -mod=readonly ./...); }

shell_syntax() {
  local file status=0
  for file in $(git ls-files --cached --others --exclude-standard '*.sh' .ci/run hack/vm/init hack/vm/guest.sh | sort -u); do
    bash -n "$file" || status=1
  done
  return $status
}

# versions_agree: what hack/versions.env says is what the pinned modules have.
versions_agree() {
  local status=0 file module version
  while read -r file module version; do
    grep -qE "^(require )?\s*$module v$version( |$)" "$file/go.mod" || { echo "$file/go.mod does not require $module v$version"; status=1; }
  done <<X
hack/third_party/kubernetes k8s.io/kubernetes $KUBERNETES_VERSION
hack/third_party/etcd go.etcd.io/etcd/server/v3 $ETCD_VERSION
hack/third_party/helm helm.sh/helm/v4 $HELM_VERSION
hack/third_party/provisioner github.com/kubernetes-csi/external-provisioner/v6 $CSI_PROVISIONER_VERSION
hack/third_party/attacher github.com/kubernetes-csi/external-attacher/v4 $CSI_ATTACHER_VERSION
hack/third_party/resizer github.com/kubernetes-csi/external-resizer/v2 $CSI_RESIZER_VERSION
hack/third_party/golangci-lint github.com/golangci/golangci-lint/v2 $GOLANGCI_LINT_VERSION
hack/image github.com/google/go-containerregistry $GO_CONTAINERREGISTRY_VERSION
. github.com/kubernetes-csi/csi-test/v5 $CSI_TEST_VERSION
X
  grep -q "csi-provisioner:v$CSI_PROVISIONER_VERSION" charts/aoe-csi/values.yaml || { echo "chart: another csi-provisioner"; status=1; }
  grep -q "csi-attacher:v$CSI_ATTACHER_VERSION" charts/aoe-csi/values.yaml || { echo "chart: another csi-attacher"; status=1; }
  grep -q "csi-resizer:v$CSI_RESIZER_VERSION" charts/aoe-csi/values.yaml || { echo "chart: another csi-resizer"; status=1; }
  grep -q "image: $BUSYBOX_IMAGE" examples/writer.yaml || { echo "examples: another busybox"; status=1; }
  return $status
}

lint() {
  "$ROOT/hack/binaries.sh" build golangci-lint
  "$("$ROOT/hack/binaries.sh" path)/golangci-lint" run --allow-parallel-runners --timeout 20m ./...
}

check "gofmt -s" formatted
check "go vet" vet ./...
for tag in integration vm e2e; do check "go vet -tags $tag" vet -tags "$tag" ./...; done
check "hack/image" vet_image
check "shell syntax" shell_syntax
check "versions" versions_agree
check "generated files" "$ROOT/hack/generate.sh" --check
check "manifests" "$ROOT/hack/manifests.sh" --check
if [ "${1:-}" = --lint ]; then
  check "go.mod is tidy" go mod tidy -diff
  check "golangci-lint" lint
fi
[ -z "${COUNT:-}" ] || echo "$passed $failed" >"$COUNT"
echo "$passed checks passed, $failed failed"
[ $failed -eq 0 ]
