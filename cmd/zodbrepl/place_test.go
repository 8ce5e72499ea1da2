package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestRatesAreBytesASecond(t *testing.T) {
	for s, want := range map[string]int64{"1": 1, "200000": 200_000, "500K": 500 << 10, "500k": 500 << 10, "2M": 2 << 20, "1.5M": 3 << 19, "1G": 1 << 30} {
		got, err := parseRate(s)
		require.NoError(t, err, s)
		require.Equal(t, want, got, s)
	}
	for _, s := range []string{"", "0", "-1", "-1K", "K", "1KB", "1 M", "x", "NaN", "Inf", "1e300", "0.1"} {
		_, err := parseRate(s)
		require.Error(t, err, s)
	}
}

func TestARateIsThatOfTheLastSeconds(t *testing.T) {
	var r rate
	start := time.Now()
	const mib = 1 << 20
	require.Empty(t, r.add(start, 100*mib, 1000*mib), "what was there already is no rate")
	require.Equal(t, " 10.0 MiB/s, 1m28s left", r.add(start.Add(2*time.Second), 120*mib, 1000*mib))
	for i := range 2 * rateMarks { // slower from now on
		r.add(start.Add(time.Duration(3+i)*time.Second), int64(121+i)*mib, 1000*mib)
	}
	require.Equal(t, " 1.0 MiB/s, 13m48s left", r.add(start.Add(54*time.Second), 172*mib, 1000*mib))
}
