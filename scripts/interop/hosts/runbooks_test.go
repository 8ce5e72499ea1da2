//go:build interop

package hosts

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// configured makes the files that an operator writes for the site.
func (s *site) configured(repository, from, backup, watch string) {
	s.t.Helper()
	for host := range s.hosts {
		r := s.sh(host, `cp scripts/systemd/*.service scripts/systemd/*.timer /etc/systemd/system/ && cp scripts/systemd/zodbrepl.default /etc/default/zodbrepl`)
		require.Zero(s.t, r.code, r.stdout)
		lines := "ZODBREPL_REPOSITORY=" + repository + "\nZODBREPL_FROM=" + from + "\nZODBREPL_BACKUP_OPTIONS=\"" + backup + "\"\nZODBREPL_WATCH_OPTIONS=\"" + watch + "\"\n"
		r = s.sh(host, "cat >>/etc/default/zodbrepl <<'END'\n"+lines+"END\n")
		require.Zero(s.t, r.code, r.stdout)
	}
}

func (s *site) ok(host, command string) {
	s.t.Helper()
	r := s.sh(host, command)
	require.Zero(s.t, r.code, "%s: %s: %s", host, command, r.stdout)
}

// Set-up, a standby that was down, disaster recovery, divergence, failover and failback through a directory that both hosts see.
func TestTheRunbooksOfASharedDirectory(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.configured("/mnt/zodb", "/mnt/zodb", "", "--interval 200ms --http :8001")
	commit(t, s.hosts["bms1"].dir+"/root/srv/zeo/Data.fs", 5)
	s.ok("bms1", "systemctl start zeo")
	s.try("The master")
	s.try("The standby")
	s.try("Is it well?")
	s.killAll("bms2")
	s.try("The standby is down")
	s.try("Health over HTTP")
	s.commits("bms1")
	s.ok("bms1", "zodbrepl backup -f /srv/zeo/Data.fs -r /var/backups/zodb --ship /mnt/zodb")
	s.try("The repository is damaged")
	before := s.bytes("bms1")
	s.try("Disaster recovery: a moment")
	require.True(t, before == s.bytes("bms1"), "everything was backed up")
	s.commits("bms1")
	s.ok("bms1", "zodbrepl backup -f /srv/zeo/Data.fs -r /var/backups/zodb --ship /mnt/zodb")

	// Somebody starts ZEO on the standby.
	until(t, "bms2 follows", func() bool { return s.bytes("bms1") == s.bytes("bms2") })
	s.ok("bms2", "systemctl stop zodbrepl-watch && systemctl start zeo")
	s.commits("bms2")
	s.try("Divergence")
	require.True(t, s.bytes("bms1") == s.bytes("bms2"))

	s.commits("bms1") // which are lost
	s.killAll("bms1")
	s.try("Failover: the master is lost")
	s.commits("bms2")
	s.ok("bms2", "zodbrepl backup -f /srv/zeo/Data.fs -r /mnt/zodb")
	s.try("The former master comes back")
	until(t, "bms1 follows", func() bool { return s.bytes("bms1") == s.bytes("bms2") })
}

// The planned exchange, between repositories on both hosts.
func TestTheRunbookOfTheExchange(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.configured("/var/backups/zodb", "/var/backups/zodb", "", "--interval 200ms")
	commit(t, s.hosts["bms1"].dir+"/root/srv/zeo/Data.fs", 5)
	s.ok("bms1", "systemctl start zeo")
	s.ok("bms2", "mkdir -p /var/backups/zodb")
	s.ok("bms1", "mkdir -p /var/backups/zodb; zodbrepl backup -f /srv/zeo/Data.fs -r /var/backups/zodb --ship sftp://root@bms2/var/backups/zodb")
	s.commits("bms1")
	s.try("Planned exchange (handover)")
	until(t, "bms1 follows", func() bool { return s.bytes("bms1") == s.bytes("bms2") })
	s.commits("bms2")
}

// Two standbys of one master are both promoted while neither sees the other, and clients write to both.
func TestTheRunbookOfASplitBrain(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.configured("/mnt/zodb", "/mnt/zodb", "", "--interval 200ms")
	former := s.hosts["bms1"].dir + "/root/srv/former.fs"
	commit(t, former, 5)
	s.ok("bms1", "zodbrepl backup -f /srv/former.fs -r /mnt/zodb")
	for _, host := range []string{"bms1", "bms2"} {
		s.ok(host, "zodbrepl watch --once --from /mnt/zodb --data /srv/zeo/Data.fs")
	}
	s.ok("bms1", "mv /mnt/zodb /mnt/away")
	for _, host := range []string{"bms1", "bms2"} {
		s.ok(host, "zodbrepl promote --no-drain --data /srv/zeo/Data.fs --exec 'systemctl start zeo'")
		s.commits(host)
	}
	s.ok("bms1", "mv /mnt/away /mnt/zodb")
	s.try("Split brain: both were promoted")
	require.True(t, s.bytes("bms1") == s.bytes("bms2"))
	s.commits("bms1")
	s.ok("bms1", "zodbrepl backup -f /srv/zeo/Data.fs -r /mnt/one")
	s.ok("bms2", "zodbrepl watch --once --from /mnt/one --data /srv/zeo/Data.fs")
	require.True(t, s.bytes("bms1") == s.bytes("bms2"))
}
