// Package transport carries increments to other hosts.
//
// A [Target] is a place that holds a repository: a directory (a shared mount), or one behind an OpenSSH server, reached by
// SFTP. [Ship] brings targets up to date with a local repository.
//
// Promises: on a target, an increment's manifest appears only when its data is there, whole and as durable as the
// target can make it; half a file is gone on with, after its beginning has been compared; a slow or dead target
// holds back no other; nothing is written to a target whose history is another one's or has gone on in a higher
// epoch.
package transport
