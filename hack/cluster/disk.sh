# shellcheck shell=bash
# Sourced by cluster.sh: the disk that nodes start from, with the container images already unpacked on it. Importing them
# in the emulated guests would take a minute; here a containerd of this machine fills a directory in seconds.

TEMPLATE=$CACHE/cluster-disk
NODE_DISK_SIZE=${NODE_DISK_SIZE:-8G}

# disk_template makes $TEMPLATE/disk.img again when an image archive changed.
disk_template() {
  local images wanted; images=$("$ROOT/hack/images.sh" path)
  wanted=$(cd "$images" && sha256sum ./*.tar; echo "$NODE_DISK_SIZE")
  [ "$wanted" != "$(cat "$TEMPLATE/made-from" 2>/dev/null)" ] || return 0
  say "unpacking images to the node disk"
  rm -rf "$TEMPLATE"
  mkdir -p "$TEMPLATE"/root/{containerd,kubelet,aoe-csi} "$TEMPLATE/run"
  fill_store "$images"/*.tar || { tail -n 20 "$TEMPLATE/containerd.log" >&2; die "could not unpack the images"; }
  truncate -s "$NODE_DISK_SIZE" "$TEMPLATE/disk.img"
  mkfs.ext4 -q -E lazy_itable_init=1,lazy_journal_init=1 -d "$TEMPLATE/root" "$TEMPLATE/disk.img"
  rm -rf "$TEMPLATE/root" "$TEMPLATE/run"
  echo "$wanted" >"$TEMPLATE/made-from"
}

# fill_store ARCHIVE…: runs a containerd without its Kubernetes plugin over the template's directory.
fill_store() {
  local socket=$TEMPLATE/run/containerd.sock pid archive status=0
  printf 'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n' >"$TEMPLATE/run/config.toml"
  # In a mount namespace of its own, so that no mount of an unpacking outlives it.
  unshare --mount containerd --config "$TEMPLATE/run/config.toml" --root "$TEMPLATE/root/containerd" \
    --state "$TEMPLATE/run/state" --address "$socket" >"$TEMPLATE/containerd.log" 2>&1 8>&- 9>&- &
  pid=$!
  wait_for 30 "containerd" ctr -a "$socket" version || status=1
  if [ $status -eq 0 ]; then
    for archive; do ctr -a "$socket" -n k8s.io images import "$archive" >>"$TEMPLATE/containerd.log" 2>&1 || status=1; done
  fi
  kill $pid 2>/dev/null || true
  wait $pid 2>/dev/null || true
  return $status
}
