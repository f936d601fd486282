#!/bin/sh
# Runs golangci-lint of exactly the version that the configuration was written
# for: another one finds other things. It is built once, from the Go module
# proxy, into a cache outside the tree.
set -eu
version=v2.15.0
cd "$(dirname "$0")/../.."

is_it() { "$1" version 2>/dev/null | grep -qF "version ${version#v}"; }

cache=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/liveupd/golangci-lint-$version
for lint in "$cache/golangci-lint" "$(command -v golangci-lint || true)" "$(go env GOPATH)/bin/golangci-lint"; do
	if [ -n "$lint" ] && is_it "$lint"; then
		exec "$lint" "$@"
	fi
done
echo "lint.sh: builds golangci-lint $version into $cache (once, some minutes)" >&2
mkdir -p "$cache"
(cd / && GOBIN=$cache GOFLAGS= CGO_ENABLED=0 go install "github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$version")
exec "$cache/golangci-lint" "$@"
