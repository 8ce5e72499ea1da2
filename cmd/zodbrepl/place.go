package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"zodbrepl/internal/fault"
	"zodbrepl/transport"
)

// placeFlags are the flags of a command that takes a place which may be on another host.
func placeFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "accept-new", Usage: "accept the key of a host that is not in known_hosts yet, and write it there"},
		&cli.StringFlag{Name: "ssh-command", Usage: "run this `COMMAND` (ssh, with options perhaps) to reach sftp:// places, instead of the SSH that is built in"},
		&cli.StringFlag{Name: "limit-rate", Usage: "at most `RATE` bytes a second to or from each place; 500K and 2M are understood"},
	}
}

// withPlace adds placeFlags to the flags of a command.
func withPlace(flags ...cli.Flag) []cli.Flag { return append(flags, placeFlags()...) }

// targetOptions returns what placeFlags say.
func targetOptions(c *cli.Context) (transport.TargetOptions, error) {
	o := transport.TargetOptions{AcceptNew: c.Bool("accept-new"), SSHCommand: strings.TrimSpace(c.String("ssh-command")), Log: logger(c, c.Bool("verbose"))}
	if c.IsSet("ssh-command") && o.SSHCommand == "" {
		return o, fault.New(fault.Usage, "%s: --ssh-command is empty", c.Command.Name).Keeping("nothing was done").Remedy("leave it out, or give a command: --ssh-command ssh")
	}
	if s := c.String("limit-rate"); c.IsSet("limit-rate") {
		var err error
		if o.LimitRate, err = parseRate(s); err != nil {
			return o, fault.New(fault.Usage, "%s: --limit-rate %q", c.Command.Name, s).Because(err).Keeping("nothing was done").
				Remedy("give bytes a second: 200000, 500K, 2M")
		}
	}
	return o, nil
}

// parseRate takes a number of bytes, with K, M or G for powers of 1024.
func parseRate(s string) (int64, error) {
	unit := 1.0
	if n := len(s); n > 0 {
		if i := strings.IndexByte("KMG", s[n-1]&^0x20); i >= 0 {
			unit, s = math.Pow(1024, float64(i+1)), s[:n-1]
		}
	}
	v, err := strconv.ParseFloat(s, 64)
	switch v *= unit; {
	case err != nil:
		return 0, fmt.Errorf("no number")
	case !(v >= 1) || v > 1<<50:
		return 0, fmt.Errorf("not between 1 and 2^50")
	}
	return int64(v), nil
}

// shortPatience is for those who want an answer now, also that there is none.
const shortPatience = 10 * time.Second
