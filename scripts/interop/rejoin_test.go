//go:build interop

package interop

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/filestorage"
)

// rejoined is what we use of zodbrepl rejoin --json.
type rejoined struct {
	Way   string `json:"way"`
	Saved string `json:"saved"`
	Only  struct {
		Transactions int  `json:"transactions"`
		Packed       bool `json:"packed"`
	} `json:"only"`
}

func rejoin(t *testing.T, data, from string) (r rejoined) {
	t.Helper()
	require.NoError(t, json.Unmarshal([]byte(zodbrepl(t, "rejoin", "--json", "--data", data, "--from", from)), &r))
	return r
}

// differences are the tids that diff says that only the first file has: sure and unsure.
func differences(t *testing.T, a, b string) (sure, unsure map[filestorage.TID]bool) {
	t.Helper()
	r := tryAt(t, "", "diff", "--json", a, b)
	require.Equal(t, 1, r.code, r.stderr)
	sure, unsure = map[filestorage.TID]bool{}, map[filestorage.TID]bool{}
	for line := range strings.Lines(r.stdout) {
		var d struct {
			Type, Side string
			Unsure     bool
			TID        filestorage.TID
		}
		require.NoError(t, json.Unmarshal([]byte(line), &d))
		if d.Type == "transaction" && d.Side == "a" {
			map[bool]map[filestorage.TID]bool{false: sure, true: unsure}[d.Unsure][d.TID] = true
		}
	}
	return sure, unsure
}

func only(a, b map[filestorage.TID]bool) map[filestorage.TID]bool {
	out := map[filestorage.TID]bool{}
	for tid := range a {
		if !b[tid] {
			out[tid] = true
		}
	}
	return out
}

// Two hosts with a FileStorage of the real ZODB take turns: what the former master has alone is undone transactions, new
// objects, large ones; the new one is packed in the second round.
func TestAFormerMasterOfTheRealZODBRejoins(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, p *peer) {
		dir := t.TempDir()
		shared := mkdir(t, dir, "shared")
		bms1, bms2 := filepath.Join(mkdir(t, dir, "bms1"), "Data.fs"), filepath.Join(mkdir(t, dir, "bms2"), "Data.fs")
		p.grow(bms1, "plain", "undo", "big", "plain", "empty")
		zodbrepl(t, "backup", "-f", bms1, "-r", shared)
		zodbrepl(t, "watch", "--once", "--from", shared, "--data", bms2)

		// bms1 dies with what was never backed up.
		before := p.grow(bms1, "plain", "undo", "delete", "empty", "big")
		hadFirst := tidsOf(t, bms1)
		zodbrepl(t, "promote", "--data", bms2)
		p.grow(bms2, "plain", "undo", "plain")
		zodbrepl(t, "backup", "-f", bms2, "-r", shared)
		lost := only(hadFirst, tidsOf(t, bms2))
		sure, unsure := differences(t, bms1, bms2)
		require.Equal(t, lost, sure)
		require.Empty(t, unsure)

		r := rejoin(t, bms1, shared)
		require.Equal(t, "deltas", r.Way)
		require.Equal(t, len(lost), r.Only.Transactions)
		sure, unsure = differences(t, r.Saved, bms2)
		require.Equal(t, lost, sure)
		require.Empty(t, unsure)
		kept, err := os.ReadFile(r.Saved)
		require.NoError(t, err)
		require.True(t, strings.HasSuffix(string(before), string(kept[len(kept)-4096:])))
		zodbrepl(t, "watch", "--once", "--from", shared, "--data", bms1)
		sameObjects(t, p, bms2, bms1)

		// Back again, and the new master is packed.
		zodbrepl(t, "promote", "--data", bms1)
		before = p.grow(bms2, "plain", "undo")
		had := tidsOf(t, bms2)
		p.grow(bms1, "plain", "delete", "pack", "plain")
		zodbrepl(t, "backup", "-f", bms1, "-r", shared)
		want := p.do("load", call{"data": bms2, "read_only": true})
		r = rejoin(t, bms2, shared)
		require.Equal(t, "full", r.Way)
		require.True(t, r.Only.Packed)
		sameBytes(t, before, r.Saved, "the whole Data.fs is kept")
		got := p.do("load", call{"data": r.Saved, "read_only": true})
		require.Equal(t, want.Digest, got.Digest, "and ZODB opens it")
		require.Equal(t, 1, got.UsedIndex, "with its index")
		sure, unsure = differences(t, r.Saved, bms1)
		for tid := range only(had, tidsOf(t, bms1)) {
			require.True(t, sure[tid] || unsure[tid], tid)
		}
		zodbrepl(t, "watch", "--once", "--from", shared, "--data", bms2)
		sameObjects(t, p, bms1, bms2)
	})
}
