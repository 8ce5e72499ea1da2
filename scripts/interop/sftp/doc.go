// Package sftp tests zodbrepl between two hosts with a real OpenSSH server between them, in every set-up that
// docs/operations.md describes, and over a line that is long, thin, and breaks:
//
//	make interop
//
// It needs root, and Debian's openssh-server and openssh-client. The servers run on loopback with configurations and
// keys of their own; nothing of the machine's is changed.
package sftp
