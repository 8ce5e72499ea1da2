package transport

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/skeema/knownhosts"
	"golang.org/x/crypto/ssh"
	xknownhosts "golang.org/x/crypto/ssh/knownhosts"

	"zodbrepl/internal/durable"
	"zodbrepl/internal/fault"
)

// hostKeys checks the key of one host against known_hosts.
type hostKeys struct {
	host   *hostConfig
	accept bool // writes the key of an unknown host down
	log    *slog.Logger
	db     *knownhosts.HostKeyDB
	refuse error // why the last key was refused: what comes out of the handshake does not always say it
}

func newHostKeys(host *hostConfig, accept bool, log *slog.Logger) (*hostKeys, error) {
	k := &hostKeys{host: host, accept: accept, log: log}
	var files []string
	for _, f := range host.knownHosts {
		if fi, err := os.Stat(f); err == nil && !fi.IsDir() {
			files = append(files, f)
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, k.unreadable(err)
		}
	}
	var err error
	if k.db, err = knownhosts.NewDB(files...); err != nil {
		return nil, k.unreadable(err)
	}
	return k, nil
}

func (k *hostKeys) unreadable(err error) error {
	return fault.New(nil, "the known host keys cannot be read").Because(err).Keeping("nothing was connected").
		Remedy("repair that file or the right to read it; ssh-keygen -lf FILE shows what is in it")
}

// algorithms returns the kinds of keys to ask the host for: first those that are known of it, so that a host with
// several shows one that can be checked; then the others, so that the message can tell them apart.
func (k *hostKeys) algorithms() []string {
	supported := ssh.SupportedAlgorithms().HostKeys
	// Not with SHA-1, with which the key of a line "ssh-rsa" could sign as well.
	algos := slices.DeleteFunc(k.db.HostKeyAlgorithms(k.host.keyName), func(a string) bool { return !slices.Contains(supported, a) })
	// A certificate says nothing without an authority in known_hosts. The kind of the authority's own key, which is all
	// that the library looks at, says nothing of the kinds that it has signed.
	authority := slices.ContainsFunc(k.db.HostKeys(k.host.keyName), func(key knownhosts.PublicKey) bool { return key.Cert })
	for _, certificates := range []bool{true, false} {
		for _, a := range supported {
			if strings.Contains(a, "-cert-") == certificates && (authority || !certificates) && !slices.Contains(algos, a) {
				algos = append(algos, a)
			}
		}
	}
	return algos
}

// check is a ssh.HostKeyCallback. How the host was reached, and by which address, makes no difference.
func (k *hostKeys) check(_ string, _ net.Addr, key ssh.PublicKey) error {
	k.refuse = k.verdict(key)
	return k.refuse
}

func (k *hostKeys) verdict(key ssh.PublicKey) error {
	err := k.db.HostKeyCallback()(k.host.keyName, &net.TCPAddr{IP: net.IPv4zero}, key)
	var unknown *xknownhosts.KeyError
	var revoked *xknownhosts.RevokedError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &revoked):
		return fault.New(nil, "host key of %s is revoked: %s", k.host.keyName, fingerprint(key)).
			Because(fmt.Errorf("%s:%d", revoked.Revoked.Filename, revoked.Revoked.Line)).Keeping("nothing was sent").
			Remedy("do not connect: somebody else may have that key. Give the host a new one, and put that into known_hosts")
	case !errors.As(err, &unknown):
		return fault.New(nil, "host certificate of %s is not good: %s", k.host.keyName, fingerprint(key)).Because(err).
			Keeping("nothing was sent").Remedy("see when it ends and which names it holds, on that host: ssh-keygen -Lf /etc/ssh/ssh_host_*-cert.pub")
	}
	if known := k.known(); len(known) > 0 {
		return k.changed(key, known)
	}
	if !k.accept {
		return fault.New(nil, "host key of %s is not known: it shows %s", k.host.keyName, fingerprint(key)).Keeping("nothing was sent").
			Remedy("compare, on that host: ssh-keygen -lf /etc/ssh/ssh_host_%s_key.pub. When it is the same, run this once with --accept-new", shortType(key))
	}
	if err := k.add(key); err != nil {
		return fault.New(nil, "host key of %s cannot be written into %s", k.host.keyName, k.file()).Because(err).Keeping("nothing was sent").
			Remedy("give this user the right to write there, or name a file with UserKnownHostsFile")
	}
	k.log.Warn("a host key that was not known is accepted from now on", "host", k.host.keyName, "key", fingerprint(key), "file", k.file())
	return nil
}

// known returns the keys of the host that are no certificate authority's.
func (k *hostKeys) known() (keys []knownhosts.PublicKey) {
	for _, key := range k.db.HostKeys(k.host.keyName) {
		if !key.Cert {
			keys = append(keys, key)
		}
	}
	return keys
}

func (k *hostKeys) changed(key ssh.PublicKey, known []knownhosts.PublicKey) error {
	var want []string
	for _, w := range known {
		want = append(want, fingerprint(w.PublicKey))
	}
	name := knownhosts.Normalize(k.host.keyName)
	return fault.New(nil, "HOST KEY OF %s HAS CHANGED: it shows %s, known is %s", k.host.keyName, fingerprint(key), strings.Join(want, " or ")).
		Keeping("nothing was sent").
		Remedy("somebody may stand in between. Compare, on that host: ssh-keygen -lf /etc/ssh/ssh_host_%s_key.pub. Only when it was set up anew: "+
			"ssh-keygen -R '%s' -f %s, then run this once with --accept-new", shortType(key), name, k.file())
}

// file is where a new key goes.
func (k *hostKeys) file() string {
	if len(k.host.knownHosts) == 0 {
		return filepath.Join(homeDir(), ".ssh", "known_hosts")
	}
	return k.host.knownHosts[0]
}

// add writes a line behind the others. A crash leaves the file as it was, or with the line, or with a part of it: a bad
// line hinders no other, and the key is unknown then.
func (k *hostKeys) add(key ssh.PublicKey) error {
	name := knownhosts.Normalize(k.host.keyName)
	if k.host.hashKnownHosts {
		name = xknownhosts.HashHostname(name)
	}
	line := []byte(name + " " + strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))) + "\n")
	path := k.file()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	last := make([]byte, 1)
	if n, _ := f.ReadAt(last, fi.Size()-1); n == 1 && !bytes.Equal(last, []byte("\n")) {
		line = append([]byte("\n"), line...)
	}
	if _, err := f.Write(line); err != nil {
		return err
	}
	return errors.Join(f.Sync(), durable.SyncDir(filepath.Dir(path)))
}

func fingerprint(key ssh.PublicKey) string {
	if cert, ok := key.(*ssh.Certificate); ok {
		key = cert.Key
	}
	return fmt.Sprintf("%s (%s)", ssh.FingerprintSHA256(key), shortType(key))
}

// shortType is the part of the key's file name that tells its kind.
func shortType(key ssh.PublicKey) string {
	t := key.Type()
	switch {
	case strings.Contains(t, "ed25519"):
		return "ed25519"
	case strings.Contains(t, "ecdsa"):
		return "ecdsa"
	}
	return "rsa"
}
