# The plugin's image. `make image` builds it with docker or buildah.
#
# bookworm on purpose: newer mkfs turn on filesystem features that older nodes'
# kernels cannot mount, and this is the userland that the tests run on.
FROM docker.io/library/golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
# The Makefile is the one place that stamps the version.
ARG VERSION=unknown
RUN make build VERSION="$VERSION"

FROM docker.io/library/debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends \
      btrfs-progs e2fsprogs mount util-linux xfsprogs \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 65532 vhdx-csi \
 && useradd --uid 65532 --gid 65532 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin vhdx-csi
COPY --from=build /src/bin/vhdx-csi /src/bin/vhdxctl /usr/local/bin/
COPY LICENSE /usr/share/doc/csi-driver-vhdx/LICENSE
ARG VERSION=unknown
LABEL org.opencontainers.image.title="csi-driver-vhdx" \
      org.opencontainers.image.description="Block volumes for Kubernetes as VHDX files in a shared directory" \
      org.opencontainers.image.source="https://github.com/csi-vhdx/csi-driver-vhdx" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION"
# The controller runs as this user. The node plugin mounts and needs root: its
# manifest says runAsUser: 0.
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/vhdx-csi"]
