#!/usr/bin/env bash
# Builds the third-party programs of the cluster from the modules in third_party/, into $CACHE/bin/third-party, each named
# with its version so that it is built once. `binaries.sh path` prints the directory with links of the plain names.
#   binaries.sh build [NAME…]     default: all that a cluster needs
#   binaries.sh path
set -euo pipefail
source "$(dirname "$0")/lib/common.sh"
STORE=$BIN/third-party
VERSIONED=$STORE/versioned
K8S_LDFLAGS="-X k8s.io/component-base/version.gitVersion=v$KUBERNETES_VERSION -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=$(cut -d. -f2 <<<"$KUBERNETES_VERSION")"

# NAME MODULE VERSION PACKAGE
CATALOGUE="
etcd                    etcd          $ETCD_VERSION             go.etcd.io/etcd/server/v3
kube-apiserver          kubernetes    $KUBERNETES_VERSION       k8s.io/kubernetes/cmd/kube-apiserver
kube-controller-manager kubernetes    $KUBERNETES_VERSION       k8s.io/kubernetes/cmd/kube-controller-manager
kube-scheduler          kubernetes    $KUBERNETES_VERSION       k8s.io/kubernetes/cmd/kube-scheduler
kubelet                 kubernetes    $KUBERNETES_VERSION       k8s.io/kubernetes/cmd/kubelet
kubectl                 kubernetes    $KUBERNETES_VERSION       k8s.io/kubernetes/cmd/kubectl
csi-provisioner         provisioner   $CSI_PROVISIONER_VERSION  github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner
csi-attacher            attacher      $CSI_ATTACHER_VERSION     github.com/kubernetes-csi/external-attacher/v4/cmd/csi-attacher
csi-resizer             resizer       $CSI_RESIZER_VERSION      github.com/kubernetes-csi/external-resizer/v2/cmd/csi-resizer
helm                    helm          $HELM_VERSION             helm.sh/helm/v4/cmd/helm
golangci-lint           golangci-lint $GOLANGCI_LINT_VERSION    github.com/golangci/golangci-lint/v2/cmd/golangci-lint
"
CLUSTER="etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kubectl csi-provisioner csi-attacher csi-resizer helm"

# entry NAME: the catalogue's line.
entry() { awk -v name="$1" '$1 == name' <<<"$CATALOGUE" | grep . || die "unknown program $1"; }

build() {
  [ $# -gt 0 ] || set -- $CLUSTER
  mkdir -p "$VERSIONED"
  exec 8>"$STORE/lock"
  flock 8
  local name module version package out ldflags number=0
  for name; do
    number=$((number + 1))
    read -r _ module version package <<<"$(entry "$name")"
    [ -n "$package" ] || exit 1
    out=$VERSIONED/$name-$version
    if [ ! -x "$out" ]; then
      say "building $name $version ($number/$#) ..."
      ldflags='-s -w'
      case $module in
        kubernetes) ldflags+=" $K8S_LDFLAGS" ;;
        provisioner | attacher | resizer) ldflags+=" -X main.version=v$version" ;;
      esac
      (cd "$ROOT/hack/third_party/$module" && CGO_ENABLED=0 go build -mod=readonly -ldflags "$ldflags" -o "$out.tmp" "$package")
      mv "$out.tmp" "$out"
    fi
    ln -sfn "versioned/$name-$version" "$STORE/$name"
  done
}

command=${1:-build}
[ $# -eq 0 ] || shift
case $command in
  build) build "$@" ;;
  path) echo "$STORE" ;;
  *) die "usage: binaries.sh build [NAME…] | path" ;;
esac
