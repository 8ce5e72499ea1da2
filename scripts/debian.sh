#!/usr/bin/env bash
# Makes sure that commands are there, each from the Debian package of its name or the one named behind it: installs them
# as root, fails otherwise.
#
# Usage: scripts/debian.sh COMMAND[:PACKAGE]...
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

for arg; do
	name=${arg%%:*} package=${arg#*:}
	command -v "$name" >/dev/null && continue
	if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
		echo "scripts/debian.sh: $name is missing; as root: apt-get install $package" >&2
		exit 1
	fi
	echo "scripts/debian.sh: installing $package" >&2
	export DEBIAN_FRONTEND=noninteractive
	apt-get install -y -q --no-install-recommends "$package" >/dev/null 2>&1 ||
		{ apt-get update -q && apt-get install -y -q --no-install-recommends "$package"; } >/dev/null
	command -v "$name" >/dev/null
done
