#!/usr/bin/env bash
# All the checks of the source that are no tests. Runs every one, then fails when any did.
#
# Usage: scripts/lint/lint.sh        (or: make lint)
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
export CGO_ENABLED=0
failed=()

# check NAME COMMAND...: runs the command; output is shown only when it fails.
check() {
	local name=$1 out
	shift
	if out=$("$@" 2>&1); then
		printf 'ok    %s\n' "$name"
	else
		printf 'FAIL  %s\n%s\n' "$name" "$out"
		failed+=("$name")
	fi
}

# silent COMMAND...: fails when the command does, or prints anything.
silent() {
	local out
	out=$("$@" 2>&1) && [ -z "$out" ] && return
	printf '%s\n' "$out"
	return 1
}

sources() { git ls-files --cached --others --exclude-standard -z -- "$@"; }
go_files() { sources '*.go' | xargs -0r gofmt -l -s; }
# Not git's hooks: a script is what says that it is one.
shell_scripts() { sources .ci scripts '*.sh' | sort -zu | xargs -0r grep -lZE '^#!.*\b(ba)?sh\b' | xargs -0r shellcheck; }
# A program that was built at the top of the checkout, and added with the rest.
programs() { sources . | LC_ALL=C xargs -0r grep -slam1 $'^\x7fELF'; }
# nothing COMMAND...: fails when the command prints anything, whatever it ends with.
nothing() { [ -z "$("$@" | tee /dev/stderr)" ]; }

for platform in linux/amd64 linux/arm64; do
	check "builds without C for $platform" env GOOS="${platform%/*}" GOARCH="${platform#*/}" go build -buildvcs=false -tags urfave_cli_no_docs -o /dev/null ./cmd/zodbrepl
done
check 'gofmt -s' silent go_files
check 'no built programs' nothing programs
check 'go vet' go vet ./...
check 'go vet -tags interop' go vet -tags interop ./...
check staticcheck go tool staticcheck -tags interop ./...
check 'go mod tidy' go mod tidy -diff
check 'go mod verify' go mod verify
check 'imports one way' go test -count=1 ./scripts/lint
if command -v shellcheck >/dev/null; then
	check shellcheck shell_scripts
else
	echo 'skip  shellcheck is not installed: apt-get install shellcheck'
fi

if [ ${#failed[@]} -gt 0 ]; then
	printf 'lint: failed: %s\n' "$(printf '%s, ' "${failed[@]}" | sed 's/, $//')" >&2
	exit 1
fi
