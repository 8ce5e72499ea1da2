package restore

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"time"

	"zodbrepl/internal/fault"
)

// resolver finds the addresses of a name, as the net package does.
type resolver func(ctx context.Context, name string) ([]netip.Addr, error)

// resolveTimeout bounds a look-up: a watch or a backup should not hang on a name server.
const resolveTimeout = 10 * time.Second

func resolve(ctx context.Context, name string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	return net.DefaultResolver.LookupNetIP(ctx, "ip", name)
}

var hostName = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*\.?$`)
})

// digits is what looks like an address that was mistyped, and would be looked up as a name.
var digits = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[0-9.]+$`) })

// CheckAddresses says whether each is an IP address or may be the name of a host. option is for the message.
func CheckAddresses(option string, addresses []string) error {
	for _, a := range addresses {
		if _, err := netip.ParseAddr(a); err == nil {
			continue
		}
		if !hostName().MatchString(a) || digits().MatchString(a) || len(a) > 253 {
			return fault.New(fault.Usage, "--%s %q is no IP address and no name of a host", option, a).
				Keeping("nothing was done").Remedy("give an address such as 10.0.0.5 or 2001:db8::5, without a port or a mask, or a name")
		}
	}
	return nil
}

// addresses are some that a host may have or not: a name stands for all that it resolves to.
type addresses struct {
	given []string
	find  resolver // nil: resolve
	// ips are the addresses of each that was given, from the last look-up.
	ips [][]netip.Addr
}

// lookUp resolves the names anew: a cluster may move a name as well as an address.
func (a *addresses) lookUp(ctx context.Context) error {
	find := a.find
	if find == nil {
		find = resolve
	}
	ips := make([][]netip.Addr, len(a.given))
	for i, g := range a.given {
		if ip, err := netip.ParseAddr(g); err == nil {
			ips[i] = []netip.Addr{ip}
			continue
		}
		found, err := find(ctx, g)
		if err == nil && len(found) == 0 {
			err = errors.New("it has no address")
		}
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return &unresolvedError{fault.New(nil, "the name %s cannot be resolved, so it is not known whether this host has its address", g).Because(err).
				Keeping("nothing was done, to be safe").Remedy("see to the name server or /etc/hosts, or give the address itself")}
		}
		ips[i] = found
	}
	a.ips = ips
	return nil
}

// own returns, for each that was given, the address of this host that it stands for; the zero Addr for none.
func (a *addresses) own() ([]netip.Addr, error) {
	has, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	mine := make(map[netip.Addr]bool)
	for _, h := range has {
		if p, err := netip.ParsePrefix(h.String()); err == nil {
			mine[p.Addr().Unmap().WithZone("")] = true
		}
	}
	out := make([]netip.Addr, len(a.given))
	for i, ips := range a.ips {
		for _, ip := range ips {
			if ip = ip.Unmap().WithZone(""); mine[ip] {
				out[i] = ip
			}
		}
	}
	return out, nil
}

// refuse refuses when this host has one of the addresses, which only the master may have.
func (a *addresses) refuse() error {
	own, err := a.own()
	if err != nil {
		return err
	}
	for i, ip := range own {
		if ip.IsValid() {
			return &addressError{fault.New(fault.Refused, "this host has the address %s, which only the master may have", nameOf(a.given[i], ip)).
				Keeping("nothing was applied").
				Remedy("if this host is to be the master: zodbrepl promote; otherwise move the address to the other host")}
		}
	}
	return nil
}

// RequireAddresses refuses unless this host has every one of the addresses, of a name one: only the master has them, so
// that a former master that has lost them is not backed up.
func RequireAddresses(ctx context.Context, given []string) error {
	return requireAddresses(ctx, &addresses{given: given})
}

func requireAddresses(ctx context.Context, a *addresses) error {
	if len(a.given) == 0 {
		return nil
	}
	if err := CheckAddresses("require-address", a.given); err != nil {
		return err
	}
	if err := a.lookUp(ctx); err != nil {
		return err
	}
	own, err := a.own()
	if err != nil {
		return err
	}
	for i, ip := range own {
		if !ip.IsValid() {
			return fault.New(fault.Refused, "this host does not have the address %s, which the master has", nameOf(a.given[i], a.ips[i]...)).
				Keeping("nothing was backed up").Remedy("back up where the address is; or, if this host is to be the master, give it the address")
		}
	}
	return nil
}

// nameOf tells an address as it was given, with what it stands for.
func nameOf(given string, ips ...netip.Addr) string {
	var texts []string
	for _, ip := range ips {
		texts = append(texts, ip.Unmap().String())
	}
	if text := strings.Join(texts, ", "); text != given {
		if _, err := netip.ParseAddr(given); err != nil {
			return fmt.Sprintf("%s (%s)", given, text)
		}
		return text
	}
	return given
}

// addressError says that this host has the master's address.
type addressError struct{ err error }

func (e *addressError) Error() string { return e.err.Error() }
func (e *addressError) Unwrap() error { return e.err }

// unresolvedError says that a name could not be resolved. A watch waits, and applies nothing.
type unresolvedError struct{ err error }

func (e *unresolvedError) Error() string { return e.err.Error() }
func (e *unresolvedError) Unwrap() error { return e.err }
