#!/bin/sh
# Print the folder with spire-server and spire-agent; build them first if it is missing.
# The folder's name is the hash of go.sum, which fixes every source. The build takes ten minutes of two processors.
set -eu
cd "$(dirname "$0")"
cache="${XDG_CACHE_HOME:-$HOME/.cache}/vouchd-peers"
hash=$(cat go.mod go.sum | sha256sum | cut -c1-16)
bin="$cache/$hash"
if [ ! -x "$bin/spire-agent" ] || [ ! -x "$bin/spire-server" ]; then
  echo "Building spire-server and spire-agent into $bin, once" >&2
  mkdir -p "$cache"
  fresh=$(mktemp -d "$cache/build.XXXXXX")
  trap 'rm -rf "$fresh"' EXIT
  go build -trimpath -mod=readonly -o "$fresh/" \
    github.com/spiffe/spire/cmd/spire-server github.com/spiffe/spire/cmd/spire-agent >&2
  chmod 755 "$fresh"
  rm -rf "$bin"
  mv "$fresh" "$bin"
fi
echo "$bin"
