#!/bin/sh
# Prints the path of a livekit-server 1.13: the one on PATH, else the one in bin/, which is built
# from its Go module on first use. Only the path goes to standard output.
set -eu

MODULE=github.com/livekit/livekit-server/cmd/server
VERSION=v1.13.5
SERIES=1.13
GO_NEEDED="Go 1.26 or newer"

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
built=$root/bin/livekit-server

is_right() {
    "$1" --version 2>/dev/null | grep -Eq "version $SERIES\.[0-9]+"
}

on_path=$(command -v livekit-server || true)
if [ -n "$on_path" ]; then
    if is_right "$on_path"; then
        echo "$on_path"
        exit 0
    fi
    echo "install_livekit_server: $on_path is not a livekit-server $SERIES; using our own" >&2
fi
if [ -x "$built" ] && is_right "$built"; then
    echo "$built"
    exit 0
fi

# Go's own installer puts it here and leaves PATH to the user.
PATH=$PATH:/usr/local/go/bin
if ! command -v go >/dev/null; then
    cat >&2 <<EOF
install_livekit_server: no livekit-server $SERIES on PATH, and no Go to build one with. Do one of:
  * install $GO_NEEDED (https://go.dev/dl/) and run this again, or
  * install livekit-server $SERIES (https://github.com/livekit/livekit/releases) so that it is on PATH.
EOF
    exit 1
fi

# Built aside and moved into place, so that an interrupted build leaves nothing that looks finished.
mkdir -p "$root/bin"
work=$(mktemp -d "$root/bin/.livekit-server.XXXXXX")
trap 'rm -rf "$work"' EXIT INT TERM
echo "install_livekit_server: building $MODULE@$VERSION with $(go version | cut -d' ' -f3); some minutes the first time" >&2
if ! GOBIN=$work go install "$MODULE@$VERSION" >&2; then
    echo "install_livekit_server: the build failed; it needs $GO_NEEDED and the module proxy ($(go env GOPROXY))" >&2
    exit 1
fi
mv -f "$work/server" "$built"
if ! is_right "$built"; then
    echo "install_livekit_server: $built was built but does not say version $SERIES" >&2
    exit 1
fi
echo "$built"
