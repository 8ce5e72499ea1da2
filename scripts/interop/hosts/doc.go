// Package hosts tests zodbrepl as a host's operator has it: under systemd's units and cron's line, driven by Pacemaker
// and keepalived, and on two hosts with a line between them that fails.
//
//	make interop
//
// It needs root, and Debian's systemd, iproute2, resource-agents, libxml2-utils, keepalived and openssh-server.
package hosts
