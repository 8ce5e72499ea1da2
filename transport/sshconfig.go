package transport

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/kevinburke/ssh_config"

	"zodbrepl/internal/fault"
)

// sshConfig is what ~/.ssh/config and /etc/ssh/ssh_config say.
type sshConfig struct {
	home  string
	files []*ssh_config.Config // the user's first: the first value counts
}

// hop is a host on the way, as a URL or ProxyJump names it; user and port may be "".
type hop struct{ user, host, port string }

func (h hop) String() string {
	s := h.host
	if h.port != "" {
		s = net.JoinHostPort(h.host, h.port)
	}
	if h.user != "" {
		s = h.user + "@" + s
	}
	return s
}

// hostConfig is what holds for a host.
type hostConfig struct {
	user, host, port string
	keyName          string // by which known_hosts knows it, host:port
	knownHosts       []string
	hashKnownHosts   bool
	identities       []string // files of private keys
	certificates     []string
	identitiesOnly   bool
	agent            string // the agent's socket; "" for none
	jumps            []hop  // the way there, nearest first
}

// loadSSHConfig reads both files. What the library cannot understand of the user's own is an error: to connect past a
// setting that was meant to hold would be worse. The system's file is of less weight, and on some systems full of Match.
func loadSSHConfig(home string, log *slog.Logger) (*sshConfig, error) {
	c := &sshConfig{home: home}
	own := filepath.Join(home, ".ssh", "config")
	for _, name := range []string{own, "/etc/ssh/ssh_config"} {
		f, err := c.decode(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil && name == own:
			return nil, fault.New(nil, "%s cannot be understood", name).Because(err).Keeping("nothing was connected").
				Remedy("Match with anything but host and all is not supported: use Host, or let the system's ssh do it with --ssh-command ssh")
		case err != nil:
			log.Warn("left out: it cannot be understood; --ssh-command ssh would", "file", name, "cause", err)
		default:
			c.files = append(c.files, f)
		}
	}
	return c, nil
}

func (c *sshConfig) decode(name string) (*ssh_config.Config, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(name, c.home+"/") {
		b = includeLine().ReplaceAllFunc(b, c.absolute)
	}
	return ssh_config.DecodeBytes(b)
}

var includeLine = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`(?mi)^[ \t]*include[ \t=].*$`) })

// absolute writes the names of an Include out: the library takes them for relative to the home directory that the system
// knows, which need not be $HOME.
func (c *sshConfig) absolute(line []byte) []byte {
	line = bytes.Replace(line, []byte("="), []byte(" "), 1)
	names := strings.Fields(string(line))
	for i, n := range names[1:] {
		if strings.HasPrefix(n, "#") {
			names = names[:i+1]
			break
		}
		if rest, ok := strings.CutPrefix(n, "~/"); ok {
			n = filepath.Join(c.home, rest)
		} else if !filepath.IsAbs(n) {
			n = filepath.Join(c.home, ".ssh", n)
		}
		names[i+1] = n
	}
	return []byte(strings.Join(names, " "))
}

func (c *sshConfig) get(alias, key string) string {
	for _, f := range c.files {
		if v, err := f.Get(alias, key); err == nil && v != "" {
			return v
		}
	}
	return ""
}

func (c *sshConfig) all(alias, key string) (values []string) {
	for _, f := range c.files {
		if v, err := f.GetAll(alias, key); err == nil {
			values = append(values, v...)
		}
	}
	return values
}

// host returns what holds for h. What h says itself goes before the files.
func (c *sshConfig) host(h hop) (*hostConfig, error) {
	get := func(key string) string { return c.get(h.host, key) }
	r := &hostConfig{host: h.host, user: h.user, port: h.port}
	if v := get("HostName"); v != "" {
		r.host = strings.ReplaceAll(strings.ReplaceAll(v, "%h", h.host), "%%", "%")
	}
	if r.port == "" {
		r.port = cmp.Or(get("Port"), "22")
	}
	if r.user == "" {
		r.user = cmp.Or(get("User"), userName())
	}
	if r.user == "" {
		return nil, fault.New(fault.Usage, "no user is named for %s, and this process has none", h.host).
			Keeping("nothing was connected").Remedy("name it: sftp://user@%s/...", h.host)
	}
	r.host = strings.ToLower(r.host)
	r.keyName = net.JoinHostPort(r.host, r.port)
	if v := get("HostKeyAlias"); v != "" {
		r.keyName = net.JoinHostPort(strings.ToLower(v), "22")
	}
	r.identitiesOnly = strings.EqualFold(get("IdentitiesOnly"), "yes")
	r.hashKnownHosts = strings.EqualFold(get("HashKnownHosts"), "yes")
	if v := get("ProxyCommand"); get("ProxyJump") == "" && v != "" && v != "none" {
		return nil, fault.New(nil, "%s is reached by a ProxyCommand, which is not supported", h.host).Keeping("nothing was connected").
			Remedy("use ProxyJump, or let the system's ssh do it: --ssh-command ssh")
	}
	return r, errors.Join(c.paths(h, r), c.jumps(h, r))
}

// paths sets the names of files, in which % and ~ stand for something.
func (c *sshConfig) paths(h hop, r *hostConfig) error {
	expand := func(key string, names []string) (paths []string, err error) {
		for _, n := range names {
			if n == "none" {
				continue
			}
			p, err := c.expand(n, h, r)
			if err != nil {
				return nil, fault.New(nil, "%s of %s in ssh's configuration", key, h.host).Because(err).Keeping("nothing was connected").
					Remedy("write the path out, or use --ssh-command ssh")
			}
			if !slices.Contains(paths, p) {
				paths = append(paths, p)
			}
		}
		return paths, nil
	}
	known := []string{}
	for _, k := range [][2]string{{"UserKnownHostsFile", "~/.ssh/known_hosts ~/.ssh/known_hosts2"},
		{"GlobalKnownHostsFile", "/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2"}} {
		known = append(known, words(cmp.Or(c.get(h.host, k[0]), k[1]))...)
	}
	identities := c.all(h.host, "IdentityFile")
	if len(identities) == 0 {
		for _, n := range []string{"id_rsa", "id_ecdsa", "id_ecdsa_sk", "id_ed25519", "id_ed25519_sk"} {
			identities = append(identities, "~/.ssh/"+n)
		}
	}
	agent := cmp.Or(c.get(h.host, "IdentityAgent"), "SSH_AUTH_SOCK")
	if name, ok := strings.CutPrefix(agent, "$"); ok {
		agent = os.Getenv(strings.Trim(name, "{}"))
	} else if agent == "SSH_AUTH_SOCK" {
		agent = os.Getenv(agent)
	}
	var err1, err2, err3, err4 error
	r.knownHosts, err1 = expand("UserKnownHostsFile", known)
	r.identities, err2 = expand("IdentityFile", identities)
	r.certificates, err3 = expand("CertificateFile", c.all(h.host, "CertificateFile"))
	if agent != "" {
		var sockets []string
		if sockets, err4 = expand("IdentityAgent", []string{agent}); len(sockets) > 0 {
			r.agent = sockets[0]
		}
	}
	return errors.Join(err1, err2, err3, err4)
}

// jumps sets the way to the host.
func (c *sshConfig) jumps(h hop, r *hostConfig) error {
	v := c.get(h.host, "ProxyJump")
	if v == "" || strings.EqualFold(v, "none") {
		return nil
	}
	for _, s := range strings.Split(v, ",") {
		j, err := parseHop(strings.TrimSpace(s))
		if err != nil {
			return fault.New(nil, "ProxyJump %q of %s in ssh's configuration", v, h.host).Because(err).
				Keeping("nothing was connected").Remedy("write it as user@host:port, with commas between several")
		}
		r.jumps = append(r.jumps, j)
	}
	return nil
}

// parseHop takes [user@]host[:port], or the same as a URL.
func parseHop(s string) (hop, error) {
	s = strings.TrimSuffix(strings.TrimPrefix(s, "ssh://"), "/")
	var h hop
	if i := strings.LastIndexByte(s, '@'); i >= 0 {
		h.user, s = s[:i], s[i+1:]
	}
	h.host = s
	if host, port, err := net.SplitHostPort(s); err == nil {
		h.host, h.port = host, port
	}
	h.host = strings.Trim(h.host, "[]")
	if !plainWord(h.host) {
		return h, fmt.Errorf("%q is no host", s)
	}
	return h, nil
}

// expand replaces ~ and what stands behind a %.
func (c *sshConfig) expand(s string, h hop, r *hostConfig) (string, error) {
	if s == "~" || strings.HasPrefix(s, "~/") {
		s = strings.ReplaceAll(c.home, "%", "%%") + s[1:]
	}
	host, _ := os.Hostname()
	short, _, _ := strings.Cut(host, ".")
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		i++
		switch s[i] {
		case '%':
			b.WriteByte('%')
		case 'd':
			b.WriteString(c.home)
		case 'h':
			b.WriteString(r.host)
		case 'n':
			b.WriteString(h.host)
		case 'p':
			b.WriteString(r.port)
		case 'r':
			b.WriteString(r.user)
		case 'u':
			b.WriteString(userName())
		case 'i':
			fmt.Fprint(&b, os.Getuid())
		case 'l':
			b.WriteString(host)
		case 'L':
			b.WriteString(short)
		default:
			return "", fmt.Errorf("%%%c in %q is not supported", s[i], s)
		}
	}
	return b.String(), nil
}

// words splits at blanks; a word in quotes may hold some.
func words(s string) (out []string) {
	var w strings.Builder
	quoted, any := false, false
	for _, r := range s {
		switch {
		case r == '"':
			quoted, any = !quoted, true
		case !quoted && (r == ' ' || r == '\t'):
			if any {
				out = append(out, w.String())
			}
			w.Reset()
			any = false
		default:
			w.WriteRune(r)
			any = true
		}
	}
	if any {
		out = append(out, w.String())
	}
	return out
}

func userName() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return os.Getenv("USER")
}

// homeDir is where .ssh is: $HOME, as a service manager or cron sets it, else what the system says.
func homeDir() string {
	if home, err := os.UserHomeDir(); err == nil {
		return home
	}
	if u, err := user.Current(); err == nil {
		return u.HomeDir
	}
	return "/"
}
