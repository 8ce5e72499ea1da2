#!/usr/bin/env bash
# Makes sure that commands are there, each from the Debian package of its name: installs them as root, fails otherwise.
#
# Usage: scripts/debian.sh COMMAND...
set -euo pipefail

for name; do
	command -v "$name" >/dev/null && continue
	if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
		echo "scripts/debian.sh: $name is missing; as root: apt-get install $name" >&2
		exit 1
	fi
	echo "scripts/debian.sh: installing $name" >&2
	export DEBIAN_FRONTEND=noninteractive
	apt-get install -y -q "$name" >/dev/null 2>&1 || { apt-get update -q && apt-get install -y -q "$name"; } >/dev/null
	command -v "$name" >/dev/null
done
