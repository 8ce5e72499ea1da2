#!/usr/bin/env bash
# Runs every fuzz target of the module for a while.
#
# Usage: scripts/lint/fuzz.sh [TIME]        (20s each by default; or: make fuzz FUZZTIME=1m)
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export CGO_ENABLED=0
time=${1:-20s}

go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' ./... | while read -r package; do
	# Targets are told apart from the closing line "ok package 0.01s" by their name.
	{ go test -list '^Fuzz' "$package" | grep '^Fuzz' || true; } | while read -r target; do
		echo "== $package $target, $time"
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$package" </dev/null
	done
done
