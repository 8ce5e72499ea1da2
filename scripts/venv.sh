#!/usr/bin/env bash
# Makes the Python environments with the real ZODB, which the tests and the fixtures' maker use:
#
#   .venv     today's ZODB, ZEO and zc.zlibstorage                    (requirements.txt)
#   .venv58   ZODB 5.8.1, of the sites that have not moved yet, and
#             zodbtools, whose last version does not run with ZODB 6  (requirements-5.8.txt)
#
# Usage: scripts/venv.sh [.venv|.venv58]...        (both by default)
#
# PYTHON names the interpreter (python3 by default). A finished environment carries a stamp of what it
# was made of, so that a second run costs nothing, and half an environment is made again.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
scripts=$root/scripts
python=${PYTHON:-python3}

fail() {
	printf 'venv.sh: %s\n' "$@" >&2
	exit 1
}

# as_root_or_fail WHAT PACKAGE...: installs Debian packages as root, else says what to do.
as_root_or_fail() {
	local what=$1
	shift
	if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
		echo "venv.sh: $what is missing: installing $*" >&2
		DEBIAN_FRONTEND=noninteractive apt-get install -y -q "$@" >&2 ||
			{ apt-get update -q >&2 && DEBIAN_FRONTEND=noninteractive apt-get install -y -q "$@" >&2; } ||
			fail "installing $* failed" "install $what for $python, then run this again"
	else
		fail "$what is missing" "as root: apt-get install $*   (Debian, Ubuntu), then run this again"
	fi
}

has_venv() { "$python" -c 'import ensurepip, venv' 2>/dev/null; }
has_headers() { "$python" -c 'import os, sysconfig as s, sys; sys.exit(not os.path.exists(os.path.join(s.get_path("include"), "Python.h")))'; }

# make NAME REQUIREMENTS CHECK: the environment, unless it is there already.
make() {
	local dir=$root/$1 requirements=$scripts/$2 check=$3 want
	local pip=("$dir/bin/python" -m pip --disable-pip-version-check --quiet)

	exec 9<"$requirements"
	if command -v flock >/dev/null; then flock 9; fi # two at once: the second one waits, then finds it done

	want=$(cat "$requirements" "$scripts/requirements-build.txt" | sha256sum | cut -d' ' -f1)-$("$python" -c 'import sys; print("%s-%d.%d.%d" % ((sys.implementation.name,) + sys.version_info[:3]))')
	if [ "$(cat "$dir/.stamp" 2>/dev/null)" = "$want" ] && [ -x "$dir/bin/python" ]; then
		return
	fi

	has_venv || as_root_or_fail "Python's venv module" python3-venv
	has_venv || fail "$python still has no venv module" "name another interpreter: PYTHON=/usr/bin/python3 $0"
	if grep -q '^pygolang==' "$requirements"; then # it has no wheels
		command -v c++ >/dev/null || as_root_or_fail "a C++ compiler" g++
		has_headers || as_root_or_fail "the header Python.h" python3-dev
	fi

	echo "venv.sh: making $1 (this takes a minute)" >&2
	rm -rf "$dir"
	"$python" -m venv "$dir"
	# Old and new pip name the constraints of a build differently.
	PIP_CONSTRAINT=$scripts/requirements-build.txt PIP_BUILD_CONSTRAINT=$scripts/requirements-build.txt \
		"${pip[@]}" install --requirement "$requirements" ||
		fail "installing $2 failed, see above; $1 is incomplete and will be made again by the next run"
	"${pip[@]}" check || fail "the versions in $2 contradict each other"
	"$dir/bin/python" -c "$check" || fail "$1 does not work, see above"
	"$dir/bin/repozo" --help >/dev/null || fail "$1: repozo does not work, see above"
	echo "$want" >"$dir/.stamp"
}

command -v "$python" >/dev/null || fail "$python is not here" "install Python 3.10 or newer, or name it: PYTHON=... $0"
[ $# -gt 0 ] || set -- .venv .venv58
for name; do
	case $name in
	.venv) make "$name" requirements.txt \
		'import ZODB.FileStorage, ZODB.scripts.repozo, ZEO, zc.zlibstorage' ;;
	.venv58) make "$name" requirements-5.8.txt \
		'import ZODB.FileStorage, ZODB.DB, ZODB.scripts.repozo, zc.zlibstorage, zodbtools.zodbdump; ZODB.DB(None).close()' ;;
	*)
		echo "usage: $0 [.venv|.venv58]..." >&2
		exit 2
		;;
	esac
done
