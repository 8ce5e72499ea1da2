package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/restore"
)

func TestDiffTellsOfPacks(t *testing.T) {
	const was = "A was packed: up to 0000000000000007 it has only what was in use then"
	const doubt = `; whether it ever had 2 of the transactions marked with "?" cannot be known, the others it never had`
	for _, c := range []struct {
		name     string
		a, b     restore.SideResult
		packed   int64
		expected string
	}{
		{"no pack", restore.SideResult{}, restore.SideResult{}, 0, ""},
		{"a pack", restore.SideResult{PackedTo: 7}, restore.SideResult{}, 1, was},
		{"a pack of both at once", restore.SideResult{PackedTo: 7}, restore.SideResult{PackedTo: 7}, 0, ""},
		{"a pack that may have removed transactions", restore.SideResult{PackedTo: 7}, restore.SideResult{Unsure: 2}, 1, was + doubt},
		{"packs of both, of which this one may have removed transactions", restore.SideResult{PackedTo: 7}, restore.SideResult{PackedTo: 7, Unsure: 2}, 0, was + doubt},
		{"a pack that left no trace, if it was", restore.SideResult{}, restore.SideResult{Unsure: 2}, 0, "A may have been packed since" + doubt},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out strings.Builder
			printPacked(&out, "A", c.a, c.b, c.packed)
			require.Equal(t, c.expected, strings.TrimSuffix(out.String(), "\n"))
		})
	}
}
