package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/urfave/cli/v2"

	"zodbrepl/internal/fault"
	"zodbrepl/restore"
)

// healthFlags are what others may ask a running watch for.
func healthFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "http", Usage: "answer /healthz and /role at `HOST:PORT`; without HOST on the loopback interface"},
		&cli.DurationFlag{Name: "max-lag", Usage: "healthy is a standby that had everything this `TIME` ago or later", Value: restore.DefaultMaxLag},
		&cli.DurationFlag{Name: "max-age", Usage: "and that got something new this `TIME` ago or later, for databases that are never quiet so long; 0: any"},
	}
}

// healthOf checks the flags before anything is done. address is "" when nobody is to be answered.
func healthOf(c *cli.Context) (h *restore.Health, address string, err error) {
	h = &restore.Health{MaxLag: c.Duration("max-lag"), MaxAge: c.Duration("max-age")}
	wrong := func(format string, args ...any) error {
		return fault.New(fault.Usage, format, args...).Keeping("nothing was done").Remedy("zodbrepl watch --help")
	}
	switch address = c.String("http"); {
	case h.MaxLag <= 0, h.MaxAge < 0:
		return nil, "", wrong("watch: --max-lag and --max-age are lengths of time")
	case address == "":
		return h, "", nil
	case c.Bool("once"):
		return nil, "", wrong("watch: --http is for a watch that goes on, --once ends it")
	case h.MaxLag <= c.Duration("interval"):
		return nil, "", wrong("watch: --max-lag %s is not longer than --interval %s: it would be unhealthy between two looks", h.MaxLag, c.Duration("interval"))
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, "", wrong("watch: --http %q is not HOST:PORT or :PORT", address)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 && port != "0" {
		return nil, "", wrong("watch: --http %q: the port is a number up to 65535", address)
	}
	if host == "" {
		host = "127.0.0.1" // who wants all interfaces says so: 0.0.0.0 or [::]
	}
	return h, net.JoinHostPort(host, port), nil
}

// serveHealth answers until stop is called. A port that cannot be had is an error now, not later.
func serveHealth(ctx context.Context, h *restore.Health, address string, log *slog.Logger) (stop func(), err error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fault.New(nil, "--http %s", address).Because(err).Keeping("watch was not started").
			Remedy("see what has the port (ss -ltnp), or give another one")
	}
	srv := &http.Server{Handler: h.Handler(), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second,
		WriteTimeout: 10 * time.Second, IdleTimeout: 30 * time.Second, MaxHeaderBytes: 8 << 10,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	log.Info("answering /healthz and /role", "address", l.Addr())
	go func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error("/healthz is not answered any more; following goes on", "address", l.Addr(), "cause", err)
		}
	}()
	return func() { srv.Close() }, nil
}
