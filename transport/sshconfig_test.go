package transport

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/internal/fault"
)

// configOf makes a home directory with that ~/.ssh/config.
func configOf(t *testing.T, config string) (home string, c *sshConfig, err error) {
	t.Helper()
	home = t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(home, ".ssh"), 0o700))
	if config != "" {
		config = strings.ReplaceAll(config, "HOME", home)
		require.NoError(t, os.WriteFile(filepath.Join(home, ".ssh", "config"), []byte(config), 0o600))
	}
	c, err = loadSSHConfig(home, slog.New(slog.DiscardHandler))
	return home, c, err
}

func TestWhatIsSetForAHostIsHonoured(t *testing.T) {
	t.Setenv("SSH_AUTH_SOCK", "/run/agent")
	home, c, err := configOf(t, `
Host bms2
	HostName bms2.example.org
	Port 2222
	User zope
	IdentityFile ~/.ssh/zodb
	IdentityFile "%d/keys/with blank"
	CertificateFile ~/.ssh/special-cert.pub
	IdentitiesOnly yes
	UserKnownHostsFile ~/known /etc/%h/%p
	GlobalKnownHostsFile none
	IdentityAgent none
	ProxyJump gate@outer:23,inner
	HashKnownHosts no
Host named
	HostName %h.example.org
	HostKeyAlias bms2-key
	IdentityAgent /run/other
Host *.far
	ProxyJump none
Host *
	User everybody
	Port 99
	IdentityFile ~/.ssh/common
`)
	require.NoError(t, err)
	h, err := c.host(hop{host: "bms2"})
	require.NoError(t, err)
	require.Equal(t, &hostConfig{user: "zope", host: "bms2.example.org", port: "2222", keyName: "bms2.example.org:2222",
		knownHosts: []string{home + "/known", "/etc/bms2.example.org/2222"},
		identities: []string{home + "/.ssh/zodb", home + "/keys/with blank", home + "/.ssh/common"}, certificates: []string{home + "/.ssh/special-cert.pub"},
		identitiesOnly: true, jumps: []hop{{"gate", "outer", "23"}, {host: "inner"}}}, h)

	h, err = c.host(hop{"me", "BMS2.elsewhere", "24"})
	require.NoError(t, err)
	require.Equal(t, "me", h.user, "the URL goes before the file")
	require.Equal(t, "24", h.port)
	require.Equal(t, "bms2.elsewhere:24", h.keyName)
	require.Equal(t, "/run/agent", h.agent)
	require.Equal(t, []string{home + "/.ssh/known_hosts", home + "/.ssh/known_hosts2", "/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2"}, h.knownHosts)

	h, err = c.host(hop{host: "named"})
	require.NoError(t, err)
	require.Equal(t, "named.example.org", h.host)
	require.Equal(t, "bms2-key:22", h.keyName)
	require.Equal(t, "/run/other", h.agent)
	h, err = c.host(hop{host: "x.far"})
	require.NoError(t, err)
	require.Empty(t, h.jumps)
}

func TestWithoutAConfigurationTheUsualKeysAreTried(t *testing.T) {
	home, c, err := configOf(t, "")
	require.NoError(t, err)
	h, err := c.host(hop{host: "bms2"})
	require.NoError(t, err)
	require.Equal(t, userName(), h.user)
	require.Equal(t, "22", h.port)
	require.Contains(t, h.identities, home+"/.ssh/id_ed25519")
}

func TestWhatIsNotSupportedOfTheConfigurationIsSaid(t *testing.T) {
	for _, c := range []struct{ name, config, says string }{
		{"Match that runs something", "Match exec true\n\tUser x\n", "Match"},
		{"Match by user", "Match user zope\n\tPort 2\n", "Match"},
		{"a ProxyCommand", "Host bms2\n\tProxyCommand nc %h %p\n", "ProxyCommand"},
		{"a sign that stands for nothing", "Host bms2\n\tIdentityFile ~/%C\n", "%C"},
		{"a jump to nowhere", "Host bms2\n\tProxyJump a,,b\n", "ProxyJump"},
		{"Include in a circle", "Include HOME/.ssh/config\n", "depth"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, config, err := configOf(t, c.config)
			if err == nil {
				_, err = config.host(hop{host: "bms2"})
			}
			require.ErrorContains(t, err, c.says)
			require.NotEmpty(t, fault.Next(err))
			require.NotEmpty(t, fault.Kept(err))
		})
	}
	t.Run("unless it is for another host", func(t *testing.T) {
		_, c, err := configOf(t, "Host other\n\tProxyCommand nc %h %p\n\tProxyJump ,\nMatch all\n\tPort 2\nMatch host bms2\n\tUser x\n")
		require.NoError(t, err)
		h, err := c.host(hop{host: "bms2"})
		require.NoError(t, err)
		require.Equal(t, []string{"x", "2"}, []string{h.user, h.port})
	})
}

func TestIncludedFilesCountWhereTheyStand(t *testing.T) {
	home, _, err := configOf(t, "")
	require.NoError(t, err)
	write := func(name, content string) {
		path := filepath.Join(home, ".ssh", name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	}
	write("config.d/a", "Host bms2\n\tUser first\n")
	write("config.d/b", "Host bms2\n\tUser second\n\tPort 2\n")
	write("more", "Host *\n\tPort 3\n\tHostName included\n")
	write("config", "include=config.d/*\nHost bms2\n\tUser third\n\tInclude ~/.ssh/more # here\n\tInclude missing\n")
	c, err := loadSSHConfig(home, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	h, err := c.host(hop{host: "bms2"})
	require.NoError(t, err)
	require.Equal(t, []string{"first", "2", "included"}, []string{h.user, h.port, h.host})
	h, err = c.host(hop{host: "bms3"})
	require.NoError(t, err)
	require.Equal(t, []string{"22", "bms3"}, []string{h.port, h.host})
}

func TestWordsAreSplitAtBlanks(t *testing.T) {
	require.Equal(t, []string{"a", "b c", "d", ""}, words(` a "b c"	d ""`))
	require.Empty(t, words(" "))
}
