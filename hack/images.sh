#!/usr/bin/env bash
# Makes the cluster's container images as archives in $CACHE/images, from our binary, the side-cars and Debian's programs.
#   images.sh build [aoe-csi|sidecars|base]…    default: all
#   images.sh path
set -euo pipefail
source "$(dirname "$0")/lib/common.sh"
IMAGES=$CACHE/images

# What aoe-csi and k8s.io/mount-utils run: format, check, grow, mount, load modules; a shell for fsck's helper scripts.
TOOLS=(/bin/mount /bin/umount /sbin/blkid /sbin/fsck /sbin/e2fsck /sbin/fsck.ext4 /sbin/mke2fs /sbin/mkfs.ext4
  /sbin/resize2fs /sbin/dumpe2fs /sbin/tune2fs /sbin/mkfs.xfs /sbin/xfs_repair /sbin/fsck.xfs /usr/sbin/xfs_growfs /usr/sbin/xfs_io
  /usr/sbin/blockdev /sbin/modprobe /usr/bin/findmnt /bin/lsblk /usr/bin/stat /bin/sh /bin/cat /bin/ls)

image() { "$BIN/image" "$@"; }

# changed OUT INPUT…: is the archive older than an input?
changed() {
  local out=$1 input; shift
  [ -e "$out" ] || return 0
  for input; do [ "$input" -ot "$out" ] || return 0; done
  return 1
}

build_aoe_csi() {
  say "image $IMAGE_REPOSITORY:$IMAGE_TAG"
  local version; version=$(git -C "$ROOT" describe --tags --always --dirty 2>/dev/null || echo v0.0.0-dev)
  static_go_build "$ROOT" "$BIN/aoe-csi" ./cmd/aoe-csi "-X main.version=$version"
  local args=() tool
  for tool in "${TOOLS[@]}"; do args+=(-tool "$tool"); done
  image -o "$IMAGES/aoe-csi.tar" -tag "$IMAGE_REPOSITORY:$IMAGE_TAG" -entrypoint /aoe-csi "${args[@]}" \
    /aoe-csi="$BIN/aoe-csi" /etc/mke2fs.conf=/etc/mke2fs.conf /etc/mtab=@/proc/self/mounts
}

build_sidecars() {
  "$ROOT/hack/binaries.sh" build csi-provisioner csi-attacher csi-resizer
  local name version store; store=$("$ROOT/hack/binaries.sh" path)
  for name in csi-provisioner csi-attacher csi-resizer; do
    case $name in
      csi-provisioner) version=$CSI_PROVISIONER_VERSION ;;
      csi-attacher) version=$CSI_ATTACHER_VERSION ;;
      csi-resizer) version=$CSI_RESIZER_VERSION ;;
    esac
    changed "$IMAGES/$name.tar" "$store/$name" "$BIN/image" || continue
    say "image $name:v$version"
    image -o "$IMAGES/$name.tar" -tag "registry.k8s.io/sig-storage/$name:v$version" -entrypoint "/$name" "/$name=$store/$name"
  done
}

build_base() {
  local applets=() applet
  if changed "$IMAGES/pause.tar" "$ROOT/hack/image/pause/main.go" "$BIN/image"; then
    say "image $PAUSE_IMAGE"
    static_go_build "$ROOT/hack/image" "$BIN/pause" ./pause
    image -o "$IMAGES/pause.tar" -tag "$PAUSE_IMAGE" -entrypoint /pause "/pause=$BIN/pause"
  fi
  if changed "$IMAGES/busybox.tar" /bin/busybox "$BIN/image"; then
    say "image $BUSYBOX_IMAGE"
    for applet in $(/bin/busybox --list); do [ "$applet" = busybox ] || applets+=("/bin/$applet=@busybox"); done
    image -o "$IMAGES/busybox.tar" -tag "$BUSYBOX_IMAGE" -cmd sh /bin/busybox=/bin/busybox "${applets[@]}"
  fi
}

build() {
  [ $# -gt 0 ] || set -- base sidecars aoe-csi
  "$ROOT/hack/deps.sh" vm
  mkdir -p "$IMAGES" "$BIN"
  exec 8>"$IMAGES/.lock"
  flock 8
  # Replaced only when it changed, so that its date tells whether the images are stale.
  (cd "$ROOT/hack/image" && CGO_ENABLED=0 go build -mod=readonly -o "$BIN/image.new" .)
  cmp -s "$BIN/image.new" "$BIN/image" || mv "$BIN/image.new" "$BIN/image"
  local part
  for part; do
    case $part in
      aoe-csi) build_aoe_csi ;;
      sidecars) build_sidecars ;;
      base) build_base ;;
      *) die "no image part $part" ;;
    esac
  done
}

command=${1:-build}
[ $# -eq 0 ] || shift
case $command in
  build) build "$@" ;;
  path) echo "$IMAGES" ;;
  *) die "usage: images.sh build [aoe-csi|sidecars|base]… | path" ;;
esac
