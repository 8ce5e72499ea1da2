package transport

import (
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/internal/fault"
)

func TestNamesOfPlacesOnOtherHosts(t *testing.T) {
	for _, c := range []struct {
		where string
		want  remote
		name  string // "": as where
	}{
		{"sftp://zope@bms2:2222/srv/increments", remote{"zope", "bms2", "2222", "/srv/increments"}, ""},
		{"sftp://bms2/srv", remote{host: "bms2", path: "/srv"}, ""},
		{"sftp://bms2/", remote{host: "bms2", path: "/"}, ""},
		{"sftp://bms2/~/increments", remote{host: "bms2", path: "increments"}, ""},
		{"sftp://bms2/~", remote{host: "bms2", path: "."}, "sftp://bms2/~"},
		{"sftp://bms2/~/", remote{host: "bms2", path: "."}, "sftp://bms2/~"},
		{"sftp://bms2/~/../../etc", remote{host: "bms2", path: "etc"}, "sftp://bms2/~/etc"},
		{"sftp://bms2/~zope/x", remote{host: "bms2", path: "/~zope/x"}, ""},
		{"sftp://bms2//srv/../x/", remote{host: "bms2", path: "/x"}, "sftp://bms2/x"},
		{"SFTP://BMS2.Example:022/a%20b%3F", remote{host: "bms2.example", port: "22", path: "/a b?"}, "sftp://bms2.example:22/a%20b%3F"},
		{"sftp://[fe80::1]/x", remote{host: "fe80::1", path: "/x"}, ""},
		{"sftp://[::1]:2222/x", remote{host: "::1", port: "2222", path: "/x"}, ""},
		{"sftp://a%40b@bms2/x", remote{user: "a@b", host: "bms2", path: "/x"}, ""},
	} {
		t.Run(c.where, func(t *testing.T) {
			require.NoError(t, CheckTarget(c.where))
			p, err := parse(c.where)
			require.NoError(t, err)
			require.Equal(t, c.want, *p.remote)
			require.Empty(t, LocalDir(c.where))
			if c.name == "" {
				c.name = c.where
			}
			require.Equal(t, c.name, TargetName(c.where))
		})
	}
}

func TestNamesThatAreNoPlacesOnOtherHosts(t *testing.T) {
	for _, c := range []struct{ name, where, says, next string }{
		{"a password", "sftp://zope:secret@bms2/x", "must not hold a password", "ssh-keygen"},
		{"an empty password", "sftp://zope:@bms2/x", "must not hold a password", "ssh-keygen"},
		{"a password with signs", "sftp://zope:se%zz@cret@bms2/x", "", ""},
		{"an empty user", "sftp://@bms2/x", "no user name", ""},
		{"a user that would be an option", "sftp://-oX@bms2/x", "no user name", ""},
		{"a host that would be an option", "sftp://-oX/x", "no host name", ""},
		{"a user with a blank", "sftp://a%20b@bms2/x", "no user name", ""},
		{"a user with a line feed", "sftp://a%0Ab@bms2/x", "no user name", ""},
		{"no host", "sftp:///x", "no host", ""},
		{"no path", "sftp://bms2", "no directory", "sftp://host/srv/increments"},
		{"port 0", "sftp://bms2:0/x", "no port", ""},
		{"a port too high", "sftp://bms2:65536/x", "no port", ""},
		{"a port that is none", "sftp://bms2:ssh/x", "port", ""},
		{"a query", "sftp://bms2/x?y", "%3F", ""},
		{"a byte 0", "sftp://bms2/%00", "byte 0", ""},
		{"one slash", "sftp:/bms2/x", "two slashes", ""},
		{"rsync's form", "zope@bms2:x", "looks like a host", "sftp://zope@bms2/~/x"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := CheckTarget(c.where)
			require.ErrorIs(t, err, fault.Usage)
			require.ErrorContains(t, err, c.says)
			require.Contains(t, fault.Next(err), c.next)
			require.NotContains(t, fault.Explain(err), "cret")
			require.Equal(t, c.where, TargetName(c.where))
		})
	}
}
