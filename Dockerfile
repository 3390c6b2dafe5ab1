# For people with a container engine; hack/images.sh makes the same image without one.
FROM golang:1.26-bookworm AS build
ARG VERSION=v0.0.0-dev
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY cmd cmd
COPY internal internal
COPY pkg pkg
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=${VERSION}" -o /aoe-csi ./cmd/aoe-csi

# Debian, not distroless: node runs mount, blkid, fsck and mkfs, initiator runs modprobe.
FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends e2fsprogs kmod mount util-linux xfsprogs \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /aoe-csi /aoe-csi
ENTRYPOINT ["/aoe-csi"]
