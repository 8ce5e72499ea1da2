// Package sshtest is the other host of the tests: an SSH server in this process that serves a directory over SFTP and
// can be told to fail in every way in which a server, a disk or a line does.
//
//	server := sshtest.Start(t, sshtest.Options{Dir: dir})
//	home := sshtest.NewHome(t)             // a ~/.ssh, as $HOME of this process
//	home.Trust(server)                     // known_hosts
//	home.AddKey("id_ed25519", server.Key)  // the key that the server lets in
//	target := server.URL(dir)              // sftp://zope@127.0.0.1:PORT/...
//
// pkg/sftp's server does the work on the files. Its packets pass a filter that makes it behave as OpenSSH's does where
// they differ (fsync, a plain rename never replaces, errors without details), counts and records requests, and asks
// the [Rule] of the test what to do with each: Rules are the faults of a server. The faults of a line (delay,
// throttle, cut, silence) are those of [Proxy], which stands before any server, also a real sshd.
//
// Nothing here is safe against a hostile client: it is for tests, on loopback.
package sshtest
