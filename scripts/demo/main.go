// Demo plays the life of a pair of ZODB hosts in a minute, in a temporary directory: a busy master, backups from cron,
// a standby that follows, a pack, a promotion, a stale master that is refused, and a recovery of the past. It shows
// every command line that it runs, checks what it tells, and fails when something is not so. See: make demo
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"zodbrepl/fixtures"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := play(ctx, scenes); err != nil {
		fmt.Fprintln(os.Stderr, "demo: FAILED:", err)
		os.Exit(1)
	}
}

// The command lines that come more than once.
const (
	backup = "zodbrepl backup -f bms1/Data.fs -r bms1/backups"
	follow = "zodbrepl watch --from shared --data bms2/Data.fs --interval 1s"
	third  = "zodbrepl watch --from shared --data bms3/Data.fs --once"
)

func scenes(s *stage) {
	d := &demo{stage: s}
	d.master()
	d.cron()
	d.standby()
	d.proof()
	d.pack()
	d.past()
	d.promotion()
	d.staleMaster()
	d.behindItsBack()
	d.failback()
	d.verify()
}

type demo struct {
	*stage
	server *actor // writes to the master
	loop   *actor // backups, in cron's place
	watch  *actor // the standby's daemon

	// A transaction in the middle of a backup, where the master ended after it, and the master's bytes until then.
	tid     string
	witness []byte
}

func (d *demo) master() {
	d.title("A busy master")
	d.tell("bms1 is the master. Its Data.fs was made by the real ZODB (fixtures/data/plain.fs); a process goes on writing to it as " +
		"FileStorage does: it votes, commits with an fsync, and gives up every fifth transaction after its vote.")
	for _, dir := range []string{"bms1/backups", "bms2", "bms3", "shared"} {
		if err := os.MkdirAll(filepath.Join(d.dir, dir), 0o777); err != nil {
			d.failf("%v", err)
		}
	}
	if err := os.WriteFile(filepath.Join(d.dir, "bms1/Data.fs"), fixtures.Plain(), 0o666); err != nil {
		d.failf("%v", err)
	}
	d.serve()
	d.until("50 commits", func() bool { return len(d.commits()) > 50 })
	d.see("Data.fs grew from %d to more than %d bytes", len(fixtures.Plain()), d.commits()[49].end)
}

func (d *demo) serve() {
	d.server = d.start("grow -f bms1/Data.fs -interval 15ms -abort 0.2 -pack 0 -duration 2m -v")
}

// commit is what grow tells of one.
type commit struct {
	tid string
	end int64 // position after it
}

func (d *demo) commits() (cs []commit) {
	for _, line := range d.server.lines() {
		tid, end, _ := strings.Cut(line, " ")
		if n, err := strconv.ParseInt(end, 10, 64); err == nil && len(tid) == 16 {
			cs = append(cs, commit{tid, n})
		}
	}
	return cs
}

func (d *demo) cron() {
	d.title("Backups, as cron makes them")
	d.tell("The first backup is a full. The ones after it are deltas, each as small as what was committed between. They are carried to a " +
		"directory that both hosts share. The database is not stopped and not asked. -v shows what is not told to cron.")
	line := backup + " --ship shared"
	d.check(strings.Contains(d.run(0, line+" -v"), "full"), "the first one is a full")
	d.pause(time.Second)
	d.check(strings.Contains(d.run(0, line+" -v"), "delta"), "the second one is a delta")
	d.tell("\nNow a loop takes cron's place:")
	d.loop = d.start("while sleep 1; do " + line + "; done")
	d.until("two increments of the loop", func() bool { return len(d.stamps("shared")) >= 4 })
	d.run(0, "zodbrepl list -r shared | cut -c1-82")
	d.check(d.loop.said() == "", "the loop goes on, and is quiet: cron has nothing to mail")
}

func (d *demo) standby() {
	d.title("A standby that follows")
	d.tell("bms2 is the standby. A daemon verifies every increment whole, then appends it to its own Data.fs. It holds ZODB's lock " +
		"meanwhile, so that no ZEO server opens that file by accident.")
	d.watch = d.start(follow)
	d.followed()
	d.run(0, "zodbrepl status --data bms2/Data.fs --from shared")
	d.tell("\nWhile it runs, the loop makes more increments. They are applied within a second, on this host even at once:")
	before := d.status("bms2").Position
	d.until("a new increment is applied", func() bool { return d.status("bms2").Position > before })
	d.see("the standby went from position %d to %d by itself", before, d.status("bms2").Position)
}

// status is what zodbrepl says of a node.
type status struct {
	Position  int64  `json:"position"`
	Pending   int    `json:"pending"`
	LastTID   string `json:"last_tid"`
	Role      string `json:"role"`
	Epoch     int    `json:"epoch"`
	Condition struct {
		Name string `json:"name"`
	} `json:"condition"`
}

func (d *demo) status(host string) (st status) {
	out, code := d.quietly("zodbrepl status --json --from shared --data " + host + "/Data.fs 2>/dev/null")
	if err := json.Unmarshal([]byte(out), &st); code == 0 && err != nil {
		d.failf("status of %s: %v", host, err)
	}
	return st
}

// followed waits for the standby to have all that was shipped.
func (d *demo) followed() {
	d.until("the standby has all that was shipped", func() bool {
		st := d.status("bms2")
		return st.Position > 0 && st.Pending == 0 && st.Condition.Name == "current"
	})
}

func (d *demo) proof() {
	d.title("The moment of proof")
	d.tell("The loop ends here, so that from now on you see what every backup says. The master goes on. The standby has applied all that " +
		"was shipped, and the master is ahead of it; but up to the standby's end the two files must be the same, byte for byte. Look at the hashes.")
	d.loop.end(syscall.SIGTERM)
	d.run(0, backup+" --ship shared")
	d.followed()
	n := d.status("bms2").Position
	d.sameHashes(n)
	// Remember a moment of the past: a transaction that no backup ends with.
	cs := d.commits()
	for i, c := range cs {
		if i > 0 && i >= len(cs)/3 && c.end < n {
			d.tid, d.witness = c.tid, d.read("bms1/Data.fs")[:c.end]
			break
		}
	}
	d.check(d.tid != "", "for later, the master's first %d bytes, up to transaction %s, are remembered", len(d.witness), d.tid)
}

func (d *demo) sameHashes(n int64) {
	master := d.run(0, fmt.Sprintf("head -c %d bms1/Data.fs | sha256sum", n))
	standby := d.run(0, "sha256sum < bms2/Data.fs")
	d.check(master == standby, "the standby is the master's prefix of %d bytes", n)
}

func (d *demo) pack() {
	d.title("A pack on the master")
	d.tell("A pack rewrites Data.fs: another file, shorter, with nearly every byte elsewhere. No delta fits any more. The next backup notices " +
		"it, says so, and makes a full; the standby builds it beside its own file and swaps it in, so that readers never see half of it.")
	before, size := d.inode("bms2/Data.fs"), len(d.read("bms1/Data.fs"))
	d.server.end(syscall.SIGTERM)
	d.run(0, "grow -f bms1/Data.fs -count 1 -abort 0 -pack 1 -v")
	d.check(len(d.read("bms1/Data.fs")) < size, "the pack made the master's Data.fs shorter, from %d bytes to %d", size, len(d.read("bms1/Data.fs")))
	d.check(strings.Contains(d.run(0, backup+" --ship shared"), "packed"), "the backup tells, unasked, that it made a full, and why")
	d.followed()
	d.sameHashes(d.status("bms2").Position)
	d.check(d.inode("bms2/Data.fs") != before, "the standby's Data.fs is another file now (inode %d, it was %d)", d.inode("bms2/Data.fs"), before)
	d.serve()
	d.until("some commits", func() bool { return len(d.commits()) > 20 })
	d.run(0, backup+" --ship shared")
	d.followed()
}

func (d *demo) inode(name string) uint64 {
	fi, err := os.Stat(filepath.Join(d.dir, name))
	if err != nil {
		d.failf("%v", err)
	}
	return fi.Sys().(*syscall.Stat_t).Ino
}

func (d *demo) past() {
	d.title("Any moment of the past, to the transaction")
	d.tell("The pack has taken the past away from the master. The backups still have it: here is the database as it was after the transaction " +
		"that was remembered, which lies in the middle of an increment. The standby's directory serves as well as the master's.")
	d.run(0, "zodbrepl recover -r shared -o past.fs --at "+d.tid)
	d.check(string(d.read("past.fs")) == string(d.witness), "past.fs is byte for byte what the master was then")
	d.run(0, "ls -l past.fs past.fs.index")
}

func (d *demo) promotion() {
	d.title("Promotion, while the daemon runs")
	d.tell("bms1 is believed to be lost. Somebody, or the cluster manager, makes bms2 the master. The daemon steps aside by itself: it must " +
		"never write to a master. --exec would start the ZEO server here.")
	d.run(0, "zodbrepl promote --data bms2/Data.fs --exec 'echo here ZEO would start with $ZODBREPL_DATA'")
	d.check(d.wait(d.watch) == 3, "the daemon ended with exit code 3, refused. Its last words:")
	said := strings.Split(strings.TrimSpace(d.watch.said()), "\n")
	d.output(strings.Join(said[max(0, len(said)-3):], "\n"))
	st := d.status("bms2")
	d.check(st.Role == "promoted" && st.Epoch == 2, "bms2 is the master now, in epoch %d", st.Epoch)
	d.tell("\nTo start the daemon again, from a unit file that nobody changed, is refused as well:")
	sum := string(d.read("bms2/Data.fs"))
	d.run(3, follow)
	d.check(string(d.read("bms2/Data.fs")) == sum, "exit code 3, and nothing was written to Data.fs")
}

func (d *demo) staleMaster() {
	d.title("A stale master")
	d.tell("bms1 was not lost: its server still writes, and its cron still runs. What it commits now exists on no other host. It must not win, " +
		"and it must hear about it.")
	n := len(d.commits())
	d.until("more commits", func() bool { return len(d.commits()) > n+20 })
	d.run(3, backup+" --ship shared")
	d.see("the target told it of the promotion: nothing was shipped")
	d.run(3, backup)
	d.see("it remembers: from now on its own backups are refused too")
	d.tell("\nThe new master goes on with the same directory, which is a repository, and with its history. A third host, bms3, follows it.")
	d.run(0, "grow -f bms2/Data.fs -count 30 -interval 5ms -abort 0.2 -pack 0")
	out := d.run(0, "zodbrepl backup -f bms2/Data.fs -r shared -v")
	d.check(strings.HasPrefix(out, "delta") || strings.Contains(out, "\ndelta"), "a delta: the standbys need no full copy after a promotion")
	d.run(0, third)
	d.check(string(d.read("bms3/Data.fs")) == string(d.read("bms2/Data.fs")), "bms3 has what the new master has")
}

func (d *demo) behindItsBack() {
	d.title("A stale master, with force")
	d.tell("Somebody removes the note from bms1's repository, makes a backup there and copies it into the shared directory by hand. Every " +
		"increment carries its epoch, so that every standby sees through it.")
	d.run(0, "rm bms1/backups/zodbrepl.fence")
	d.run(0, backup+" -v")
	stamps := d.stamps("bms1/backups")
	stamp := stamps[len(stamps)-1]
	d.run(0, "cp bms1/backups/"+stamp+".* shared/")
	before := string(d.read("bms3/Data.fs"))
	d.run(3, third)
	d.check(string(d.read("bms3/Data.fs")) == before, "bms3 refused it: exit code 3, its Data.fs is as it was")
	d.check(d.status("bms3").Condition.Name == "stale-epoch", "zodbrepl status names the condition: stale-epoch")
	d.tell("\nNothing is thrown away: what the stale master wrote was set aside, where it hinders nobody. When its server has been stopped, bms3 follows " +
		"again:")
	d.server.end(syscall.SIGTERM)
	d.run(0, "ls shared | grep stale")
	d.run(0, "grow -f bms2/Data.fs -count 10 -interval 5ms -pack 0 && zodbrepl backup -f bms2/Data.fs -r shared")
	d.run(0, third)
	d.check(string(d.read("bms3/Data.fs")) == string(d.read("bms2/Data.fs")), "bms3 has what the new master has")
}

func (d *demo) failback() {
	d.title("The former master comes back")
	d.tell("bms1 is repaired. What it committed after the promotion is on no other host. rejoin finds the last transaction that both have, keeps " +
		"everything behind it in a file, lists it for people, and only then cuts Data.fs, so that bms1 follows with deltas. First only a look:")
	before := string(d.read("bms1/Data.fs"))
	rejoin := "zodbrepl rejoin --data bms1/Data.fs --from shared"
	out := d.run(0, rejoin+" --dry-run | cut -c1-160 | grep -v '^  '")
	d.check(strings.Contains(out, "would be cut") && string(d.read("bms1/Data.fs")) == before, "a dry run changes nothing")
	d.run(0, rejoin+" | tail -3")
	d.run(0, "head -9 bms1/Data.fs.diverged-*.txt | cut -c1-120")
	d.run(0, "zodbrepl watch --from shared --data bms1/Data.fs --once")
	d.check(string(d.read("bms1/Data.fs")) == string(d.read("bms2/Data.fs")), "bms1 has what the new master has, and got only the deltas")
	out = d.run(1, "zodbrepl diff -n 1 bms1/Data.fs.diverged-???????????????? bms2/Data.fs")
	d.check(strings.Contains(out, "only in A"), "diff shows what was kept, and which objects both have changed")
}

// stamps returns those of the increments in a repository, oldest first.
func (d *demo) stamps(dir string) (stamps []string) {
	names, err := filepath.Glob(filepath.Join(d.dir, dir, "*.manifest"))
	if err != nil {
		d.failf("%v", err)
	}
	for _, name := range names {
		stamps = append(stamps, strings.TrimSuffix(filepath.Base(name), ".manifest"))
	}
	return stamps
}

func (d *demo) verify() {
	d.title("Is it all good?")
	d.tell("verify unpacks every increment of every chain and checks hashes, positions, transactions and structure, and that nothing is " +
		"missing between. A wrong byte would end it with exit code 4.")
	d.check(strings.Contains(d.run(0, "zodbrepl verify -r shared -v"), "all good"), "the shared directory is good")
	stamps := d.stamps("shared")
	d.run(0, "printf X | dd of=$(ls shared/"+stamps[len(stamps)-1]+".*fsz) bs=1 seek=20 conv=notrunc 2>/dev/null")
	d.run(4, "zodbrepl verify -r shared")
	d.see("a single wrong byte in the newest increment is found")
}
