package transport

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"unicode"

	"zodbrepl/internal/fault"
)

// location is what the name of a target says.
type location struct {
	dir    string // the local directory; "" for others
	remote *remote
}

// remote is a directory behind an SSH server: sftp://user@host:port/absolute/path, or sftp://host/~/path below the
// account's home directory.
type remote struct {
	user, host, port string // user and port are "" where the URL names none: ssh's configuration may
	path             string // absolute, or relative to the home directory
}

// String returns the URL.
func (r remote) String() string {
	u := url.URL{Scheme: "sftp", Host: r.host, Path: r.path}
	if strings.Contains(r.host, ":") {
		u.Host = "[" + r.host + "]"
	}
	if r.port != "" {
		u.Host = net.JoinHostPort(r.host, r.port)
	}
	if r.user != "" {
		u.User = url.User(r.user)
	}
	if !path.IsAbs(r.path) {
		u.Path = path.Join("/~", r.path)
	}
	return u.String()
}

// LocalDir returns the path of a target that is a local directory, "" for others.
func LocalDir(where string) string {
	p, err := parse(where)
	if err != nil {
		return ""
	}
	return p.dir
}

// TargetName returns where in full: a path that is not absolute is relative to the working directory, which another
// run may not share.
func TargetName(where string) string {
	p, err := parse(where)
	switch {
	case err != nil:
		return where
	case p.remote != nil:
		return p.remote.String()
	}
	return p.dir
}

// CheckTarget says whether OpenTarget could understand where, without opening it.
func CheckTarget(where string) error {
	_, err := parse(where)
	return err
}

func parse(where string) (location, error) {
	p, err := parsePlace(where)
	if err == nil {
		return p, nil
	}
	e := fault.New(fault.Usage, "target %q", withoutPassword(where)).Because(err).Keeping("nothing was done")
	var remedy *badURL
	if errors.As(err, &remedy) {
		return location{}, e.Remedy("%s", remedy.next)
	}
	return location{}, e.Remedy("give a directory, as a path or as file:///path, or a directory of another host as sftp://user@host/path")
}

// badURL is what is wrong with a URL, where the general remedy would not help.
type badURL struct{ what, next string }

func (e *badURL) Error() string { return e.what }

// withoutPassword takes out what may be a password: messages go to logs and mails.
func withoutPassword(where string) string {
	return passwordPart().ReplaceAllString(where, "$1:***@")
}

var passwordPart = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`(://[^/@:]*):[^/]*@`) })

func parsePlace(where string) (location, error) {
	scheme, _, isURL := strings.Cut(where, "://")
	switch {
	case where == "":
		return location{}, fmt.Errorf("empty")
	case strings.ContainsRune(where, 0):
		return location{}, fmt.Errorf("holds a byte 0")
	case !isURL:
		dir, err := localPath(where)
		return location{dir: dir}, err
	}
	scheme = strings.ToLower(scheme)
	switch {
	case scheme != "file" && scheme != "sftp":
		return location{}, fmt.Errorf("unknown scheme %q", scheme)
	case strings.ContainsAny(where, "?#"):
		return location{}, fmt.Errorf("a '?' or '#' in the path must be written %%3F or %%23")
	}
	u, err := url.Parse(where)
	if err != nil {
		var uerr *url.Error // names the URL again, with a password that it may hold
		if errors.As(err, &uerr) {
			err = uerr.Err
		}
		return location{}, err
	}
	if strings.ContainsRune(u.Path, 0) {
		return location{}, fmt.Errorf("holds a byte 0")
	}
	if scheme == "file" {
		dir, err := fileURL(u)
		return location{dir: dir}, err
	}
	r, err := sftpURL(u)
	if err != nil {
		return location{}, err
	}
	return location{remote: &r}, nil
}

func fileURL(u *url.URL) (dir string, err error) {
	switch {
	case u.User != nil || u.Host != "" && u.Host != "localhost":
		return "", fmt.Errorf("file URL with a host, %q: only local directories can be reached that way", u.Host)
	case !strings.HasPrefix(u.Path, "/"):
		return "", fmt.Errorf("file URL without an absolute path")
	}
	return filepath.Clean(u.Path), nil
}

func sftpURL(u *url.URL) (remote, error) {
	r := remote{user: u.User.Username(), host: strings.ToLower(u.Hostname()), port: u.Port()}
	_, password := u.User.Password()
	rest, home := strings.CutPrefix(u.Path, "/~")
	switch {
	case password:
		return r, &badURL{"a URL must not hold a password: it would be seen in process lists and logs",
			"take the password out, and set up a key: ssh-keygen, then ssh-copy-id"}
	case u.User != nil && !plainWord(r.user):
		return r, fmt.Errorf("%q is no user name", r.user)
	case r.host == "":
		return r, fmt.Errorf("no host is named")
	case !plainWord(r.host):
		return r, fmt.Errorf("%q is no host name", r.host)
	case u.Path == "":
		return r, &badURL{"no directory is named", "add its path: sftp://host/srv/increments, or sftp://host/~/increments below the home directory"}
	}
	if r.port != "" {
		n, err := strconv.ParseUint(r.port, 10, 16)
		if err != nil || n == 0 {
			return r, fmt.Errorf("%q is no port", r.port)
		}
		r.port = strconv.FormatUint(n, 10)
	}
	if home && (rest == "" || rest[0] == '/') {
		r.path = strings.TrimPrefix(path.Clean("/"+rest), "/")
		if r.path == "" {
			r.path = "."
		}
		return r, nil
	}
	r.path = path.Clean(u.Path)
	return r, nil
}

// plainWord says whether s can be a user or a host: it is handed to ssh, as a word that must not be an option.
func plainWord(s string) bool {
	return s != "" && s[0] != '-' && !strings.ContainsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) })
}

// localPath refuses what was meant as something else: host:/path of rsync and scp, and URLs with a slash missing.
func localPath(where string) (string, error) {
	if before, after, ok := strings.Cut(where, ":"); ok && !strings.Contains(before, "/") {
		if strings.EqualFold(before, "file") || strings.EqualFold(before, "sftp") {
			return "", fmt.Errorf("%q before the ':' looks like a host or a scheme; a URL has two slashes behind it", before)
		}
		if !strings.HasPrefix(after, "/") {
			after = "/~/" + after
		}
		return "", &badURL{fmt.Sprintf("%q before the ':' looks like a host or a scheme", before),
			fmt.Sprintf("a directory of another host is written sftp://%s%s; a directory of that name here ./%s", before, after, where)}
	}
	return filepath.Abs(where)
}
