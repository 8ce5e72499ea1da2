#!/bin/sh
# For keepalived's vrrp_script: 0 when this node may have the address, so that a dead ZEO or a standby that is far behind
# neither keeps nor gets it.
#
#   a standby     when its watch says that it is current: GET /healthz (watch --http)
#   a master      when something has its Data.fs open for writing, as ZEO has; or when nobody was promoted since, so that
#                 it may become the master again
set -u

# shellcheck source=/dev/null
. "${ZODBREPL_DEFAULTS:-/etc/default/zodbrepl}"
: "${ZODBREPL_BINARY:=zodbrepl}"
: "${ZODBREPL_HEALTHZ:=http://127.0.0.1:8001/healthz}"

status=$("$ZODBREPL_BINARY" status --json --local --data "$ZODBREPL_DATA") || exit 1
field() { echo "$status" | sed -n "s/^  \"$1\": \"\\{0,1\\}\\([^\",]*\\)\"\\{0,1\\},\$/\\1/p"; }

if [ "$(field role)" = standby ]; then
	exec curl -fsS -o /dev/null -m 2 "$ZODBREPL_HEALTHZ"
fi
[ "$(field locked_by)" = 0 ] || exit 0
"$ZODBREPL_BINARY" rejoin --dry-run --data "$ZODBREPL_DATA" --from "$ZODBREPL_FROM" >/dev/null 2>&1
case $? in
3) exit 0 ;; # all else: another was, or it cannot be known
*) exit 1 ;;
esac
