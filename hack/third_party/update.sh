#!/usr/bin/env bash
# Rewrites the consumer modules of third-party programs from ../versions.env. Run it after a change of a version and commit
# what it leaves; builds use -mod=readonly and never change them.
#   update.sh [MODULE…]     kubernetes etcd provisioner attacher resizer helm golangci-lint
set -euo pipefail
source "$(dirname "$0")/../lib/common.sh"
CSI=github.com/kubernetes-csi

# module NAME PACKAGE@VERSION…: a module that pins the given programs as its tools.
module() {
  local dir=$ROOT/hack/third_party/$1; shift
  mkdir -p "$dir"
  cd "$dir"
  rm -f go.mod go.sum
  printf 'module github.com/aoe-csi/aoe-csi/hack/third_party/%s\n\ngo 1.26.0\n' "$(basename "$dir")" >go.mod
  [ "$(basename "$dir")" != kubernetes ] || kubernetes_replacements
  say "$(basename "$dir"): resolving $*"
  local program
  for program in "$@"; do go get -tool "$program"; done
  go mod tidy
}

# Kubernetes replaces its staging modules by paths inside its own tree, which a consumer does not inherit: each has to be
# pinned at v0.MINOR.PATCH.
kubernetes_replacements() {
  local dir staging
  go mod edit -require="k8s.io/kubernetes@v$KUBERNETES_VERSION"
  dir=$(go mod download -json "k8s.io/kubernetes@v$KUBERNETES_VERSION" | jq -r .Dir)
  for staging in $(go mod edit -json "$dir/go.mod" | jq -r '.Replace[]? | select(.New.Path | startswith("./staging")) | .Old.Path'); do
    go mod edit -replace="$staging=$staging@v0${KUBERNETES_VERSION#1}"
  done
}

update() {
  case $1 in
    kubernetes)
      local p programs=()
      for p in kube-apiserver kube-controller-manager kube-scheduler kubelet kubectl; do
        programs+=("k8s.io/kubernetes/cmd/$p@v$KUBERNETES_VERSION")
      done
      module kubernetes "${programs[@]}" ;;
    etcd) module etcd "go.etcd.io/etcd/server/v3@v$ETCD_VERSION" ;;
    provisioner) module provisioner "$CSI/external-provisioner/v6/cmd/csi-provisioner@v$CSI_PROVISIONER_VERSION" ;;
    attacher) module attacher "$CSI/external-attacher/v4/cmd/csi-attacher@v$CSI_ATTACHER_VERSION" ;;
    resizer) module resizer "$CSI/external-resizer/v2/cmd/csi-resizer@v$CSI_RESIZER_VERSION" ;;
    helm) module helm "helm.sh/helm/v4/cmd/helm@v$HELM_VERSION" ;;
    golangci-lint) module golangci-lint "github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v$GOLANGCI_LINT_VERSION" ;;
    *) die "no module $1" ;;
  esac
}

[ $# -gt 0 ] || set -- kubernetes etcd provisioner attacher resizer helm golangci-lint
for name in "$@"; do (update "$name"); done
