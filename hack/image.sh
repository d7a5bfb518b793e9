#!/usr/bin/env bash
# Builds the container image with docker, or buildah where docker is not there
# or its engine does not run. BUILD_FLAGS goes to whichever it is.
set -euo pipefail
: "${IMAGE:?}" "${VERSION:?}"

if command -v docker >/dev/null && docker info >/dev/null 2>&1; then
	builder=(docker build)
elif command -v buildah >/dev/null; then
	builder=(buildah build --format docker)
else
	echo "image: neither a running docker engine nor buildah is here; apt-get install buildah" >&2
	exit 1
fi
# shellcheck disable=SC2086 # BUILD_FLAGS is a list of words
"${builder[@]}" ${BUILD_FLAGS:-} --build-arg VERSION="$VERSION" --tag "$IMAGE" .
echo "image: built $IMAGE with ${builder[0]}"
