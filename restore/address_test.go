package restore

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/internal/fault"
)

// resolving answers every name with these addresses.
func resolving(ips ...string) resolver {
	return func(context.Context, string) (out []netip.Addr, err error) {
		for _, ip := range ips {
			out = append(out, netip.MustParseAddr(ip))
		}
		return out, nil
	}
}

var errName = errors.New("no such host")

func TestABackupIsRefusedWithoutTheMastersAddress(t *testing.T) {
	for _, c := range []struct {
		name  string
		given []string
		find  resolver
		code  int
		says  string
	}{
		{"no address is required", nil, nil, 0, ""},
		{"an address of this host", []string{"127.0.0.1"}, nil, 0, ""},
		{"the same, mapped into IPv6", []string{"::ffff:127.0.0.1"}, nil, 0, ""},
		{"an address of another host", []string{"192.0.2.1"}, nil, 3, "does not have the address 192.0.2.1"},
		{"an IPv6 address of another host", []string{"2001:db8::5"}, nil, 3, "does not have the address 2001:db8::5"},
		{"one of two", []string{"127.0.0.1", "192.0.2.1"}, nil, 3, "192.0.2.1"},
		{"a name with an address of this host among others", []string{"zeo.example"}, resolving("2001:db8::5", "127.0.0.1"), 0, ""},
		{"a name of another host", []string{"zeo.example"}, resolving("2001:db8::5", "192.0.2.1"), 3, "zeo.example (2001:db8::5, 192.0.2.1)"},
		{"a name that cannot be resolved", []string{"zeo.example"}, func(context.Context, string) ([]netip.Addr, error) { return nil, errName }, 1, "cannot be resolved"},
		{"a name without an address", []string{"zeo.example"}, resolving(), 1, "it has no address"},
		{"a mask", []string{"10.0.0.5/8"}, nil, 2, "no IP address"},
		{"a mistyped address", []string{"10.0.0.555"}, nil, 2, "no IP address"},
		{"a port", []string{"zeo.example:8100"}, nil, 2, "no IP address"},
		{"nothing", []string{""}, nil, 2, "no IP address"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := requireAddresses(t.Context(), &addresses{given: c.given, find: c.find})
			require.Equal(t, c.code, fault.ExitCode(err), err)
			if c.code != 0 {
				require.ErrorContains(t, err, c.says)
				require.NotEmpty(t, fault.Kept(err))
				require.NotEmpty(t, fault.Next(err))
			}
		})
	}
}

func TestIPv6AddressesOfThisHostAreFound(t *testing.T) {
	has, err := net.InterfaceAddrs()
	require.NoError(t, err)
	found := false
	for _, a := range has {
		p, err := netip.ParsePrefix(a.String())
		require.NoError(t, err)
		require.NoError(t, requireAddresses(t.Context(), &addresses{given: []string{p.Addr().String()}}))
		if p.Addr().Is6() {
			found = true
			require.NoError(t, requireAddresses(t.Context(), &addresses{given: []string{p.Addr().WithZone("eth0").String()}}))
		}
	}
	t.Logf("an IPv6 address was there: %v", found)
}

func TestAWatchWaitsWhileANameCannotBeResolved(t *testing.T) {
	p := following(t)
	before := p.standbyBytes()
	p.step(1)
	var fails atomic.Bool
	fails.Store(true)
	w := p.start(func(o *WatchOptions) {
		o.RefuseIfAddress = []string{"zeo.example"}
		o.resolve = func(ctx context.Context, name string) ([]netip.Addr, error) {
			if fails.Load() {
				return nil, errName
			}
			return resolving("192.0.2.1")(ctx, name)
		}
	})
	p.until("it says so", func(st State) bool { return st.Condition.Name == "address-unknown" })
	require.Contains(t, p.state().Condition.Message, "zeo.example cannot be resolved")
	require.NotEmpty(t, p.state().Condition.Next)
	requireSame(t, before, p.standbyBytes())
	fails.Store(false)
	p.untilApplied(p.newest())
	require.NoError(t, w.stop(t))

	p.step(1)
	_, err := p.watch(func(o *WatchOptions) {
		o.RefuseIfAddress = []string{"zeo.example"}
		o.resolve = func(context.Context, string) ([]netip.Addr, error) { return nil, errName }
	})
	require.ErrorIs(t, err, errName)
	require.Equal(t, 1, fault.ExitCode(err))
}

// The address may come while many increments are applied: each replay asks for it.
func TestTheAddressIsAskedForBeforeEachReplay(t *testing.T) {
	p := following(t)
	p.step(1)
	first := p.newest()
	p.step(1)
	s := &standby{data: p.data, log: discard, now: p.now}
	asked := 0
	s.allowed = func() error {
		if asked++; asked == 2 {
			return &addressError{fault.New(fault.Refused, "this host has the address")}
		}
		return nil
	}
	require.NoError(t, openStandby(t.Context(), s, p.shipped))
	n, err := s.catchUp(t.Context(), p.shipped)
	require.ErrorIs(t, err, fault.Refused)
	require.Equal(t, "master-address", conditionOf(err).Name)
	require.Equal(t, 1, n)
	require.NoError(t, s.close())
	require.Equal(t, first, p.state().Applied.Stamp)
}
