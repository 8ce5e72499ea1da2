#!/bin/sh
# What keepalived runs when its state changes: the node with the address is the master, and ZEO runs there.
#
#   notify.sh {GROUP|INSTANCE} NAME {MASTER|BACKUP|FAULT|STOP} [PRIORITY]
#
#   MASTER              the standby is promoted (with all that has arrived), ZEO and the backups are started. A node that
#                       was promoted before starts them again; a former master whose place another has taken does not.
#   BACKUP FAULT STOP   the backups and ZEO are stopped; at BACKUP a standby follows again. A former master stays as it
#                       is until a person runs zodbrepl rejoin there.
#
# keepalived does not wait for the script, so two changes may run at once: they take turns, and the last one counts. To
# run it again changes nothing. What it does is logged (logger -t zodbrepl-notify); it ends with 0 when the node is as
# it should be, 3 when it refuses, 1 otherwise.
#
# /etc/default/zodbrepl has the paths and the commands; see scripts/systemd/zodbrepl.default.
set -u

# shellcheck source=/dev/null
. "${ZODBREPL_DEFAULTS:-/etc/default/zodbrepl}"
: "${ZODBREPL_BINARY:=zodbrepl}"
run=${ZODBREPL_RUN:-/run/zodbrepl-notify}

say() {
	echo "$*" >&2
	logger -t zodbrepl-notify -- "$*" 2>/dev/null || :
}

# try COMMAND: a command line of the configuration; its failure is told, and is ours.
try() {
	sh -c "$1" </dev/null 9>&- && return
	say "failed ($?): $1"
	return 1
}

# is says what the node is for zodbrepl: standby, promoted, master (a Data.fs that never was a standby's) or none.
is() {
	role=$("$ZODBREPL_BINARY" status --json --local --data "$ZODBREPL_DATA" 2>/dev/null | sed -n 's/^  "role": "\(.*\)",$/\1/p')
	case $role in
	standby | promoted) echo "$role" ;;
	*) if [ -s "$ZODBREPL_DATA" ]; then echo master; else echo none; fi ;;
	esac
}

master() {
	case $(is) in
	standby)
		if ! told=$("$ZODBREPL_BINARY" promote --data "$ZODBREPL_DATA" 2>&1 9>&-); then
			say "not promoted: $told"
			return 1
		fi
		say "$told"
		;;
	promoted | master)
		# Another node may have been promoted meanwhile. A server that runs here already has the file locked, which is
		# refused too: then this was asked when it was started.
		told=$("$ZODBREPL_BINARY" rejoin --dry-run --data "$ZODBREPL_DATA" --from "$ZODBREPL_FROM" 2>&1 9>&-)
		case $? in
		3) ;; # no newer master is known
		0)
			say "ZEO is not started: another node was promoted since this one. Let that one have the address; here: zodbrepl rejoin --data $ZODBREPL_DATA --from $ZODBREPL_FROM"
			return 3
			;;
		*)
			say "ZEO is not started: it cannot be known whether another node was promoted since this one. $told
If none was: $ZODBREPL_ZEO_START; $ZODBREPL_BACKUP_START"
			return 3
			;;
		esac
		;;
	*)
		say "there is no $ZODBREPL_DATA: nothing can be promoted"
		return 1
		;;
	esac
	try "$ZODBREPL_ZEO_START" && try "$ZODBREPL_BACKUP_START" && say "master: ZEO and the backups run"
}

# backup STATE
backup() {
	bad=0
	try "$ZODBREPL_BACKUP_STOP" || bad=1
	try "$ZODBREPL_ZEO_STOP" || bad=1
	case $(is) in
	standby | none)
		[ "$1" != BACKUP ] || try "$ZODBREPL_WATCH_START" || bad=1
		;;
	*) say "a former master; when the other node has backed up: zodbrepl rejoin --data $ZODBREPL_DATA --from $ZODBREPL_FROM && $ZODBREPL_WATCH_START" ;;
	esac
	say "$1: ZEO and the backups are stopped"
	return $bad
}

if [ $# -lt 3 ]; then
	echo "usage: $0 {GROUP|INSTANCE} NAME {MASTER|BACKUP|FAULT|STOP} [PRIORITY]" >&2
	exit 2
fi
case $3 in
MASTER | BACKUP | FAULT | STOP) ;;
*)
	say "$2: nothing to do at $3"
	exit 0
	;;
esac

mkdir -p "$run" || exit 1
# What counts is what keepalived said last, not which of two scripts is faster.
{ echo "$3" >"$run/wish.$$" && mv "$run/wish.$$" "$run/wish"; } || exit 1
exec 9>"$run/lock" || exit 1
flock 9
wish=$(cat "$run/wish")
if [ "$wish" != "$3" ]; then
	say "$2: $3 is over, $wish counts"
	exit 0
fi
say "$2: $wish"
case $wish in
MASTER) master ;;
*) backup "$wish" ;;
esac
