#!/usr/bin/env bash
# Generates Go from proto/ and deep copies and CRDs from pkg/api/v1alpha1, with the tools that go.mod pins.
#   generate.sh            writes into the tree
#   generate.sh --check    fails, with the difference, when the tree is not what would be generated
set -euo pipefail
source "$(dirname "$0")/lib/common.sh"
cd "$ROOT"

OUT=$ROOT
if [ "${1:-}" = --check ]; then
  OUT=$(mktemp -d)
  trap 'rm -rf "$OUT"' EXIT
fi
command -v protoc >/dev/null || "$ROOT/hack/deps.sh" vm

mkdir -p "$BIN"
go build -o "$BIN/protoc-gen-go" google.golang.org/protobuf/cmd/protoc-gen-go
go build -o "$BIN/protoc-gen-go-grpc" google.golang.org/grpc/cmd/protoc-gen-go-grpc
PATH=$BIN:$PATH protoc -I proto --go_out="$OUT" --go_opt=module=github.com/aoe-csi/aoe-csi \
  --go-grpc_out="$OUT" --go-grpc_opt=module=github.com/aoe-csi/aoe-csi $(cd proto && find . -name '*.proto' -printf '%P\n' | sort)
go tool controller-gen object paths=./pkg/api/v1alpha1 output:object:dir="$OUT/pkg/api/v1alpha1"
go tool controller-gen crd:maxDescLen=600 paths=./pkg/api/v1alpha1 output:crd:dir="$OUT/charts/aoe-csi/crds"

[ "${1:-}" = --check ] || exit 0
status=0
while read -r file; do
  # Which protoc made a file is in a comment and may differ.
  diff -u -I '^// *-* *\(protoc\|	protoc\)' "$file" "$OUT/$file" || status=1
done < <(cd "$OUT" && find . -type f -printf '%P\n')
for crd in charts/aoe-csi/crds/*; do [ -e "$OUT/$crd" ] || { echo "$crd is generated from nothing"; status=1; }; done
[ $status -eq 0 ] || die "generated files are stale: run make generate"
