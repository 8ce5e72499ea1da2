//go:build interop

package interop

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/fixtures/fixturetest"
)

// TestManifestsListTheBlobs that is_blob_record of ZODB finds, through zc.zlibstorage too, and no others.
func TestManifestsListTheBlobs(t *testing.T) {
	t.Parallel()
	p := newPeer(t, ".venv")
	found := 0
	for _, name := range fixturetest.Names(t) {
		facts := fixturetest.Facts(t, name)
		if facts.Error != nil || facts.RefusedByToday != "" || facts.Check != nil || strings.HasPrefix(name, "bad-") {
			continue
		}
		want := []string{}
		for _, txn := range facts.Transactions {
			for _, r := range txn.Records {
				if r.IsBlob {
					want = append(want, r.OID.String()+"/"+r.TID.String())
				}
			}
		}
		for _, by := range []string{"us", "the real repozo"} {
			t.Run(name+" backed up by "+by, func(t *testing.T) {
				repo, data := t.TempDir(), fixturetest.Copy(t, name)
				if by != "us" { // we give the manifests later
					require.Zero(t, p.repozo("2024-01-01-00-00-00", "-Bz", "-r", repo, "-f", data).Code)
				}
				zodbrepl(t, "backup", "-f", data, "-r", repo)
				files, err := filepath.Glob(filepath.Join(repo, "*.manifest"))
				require.NoError(t, err)
				require.Len(t, files, 1)
				b, err := os.ReadFile(files[0])
				require.NoError(t, err)
				var m struct {
					Blobs []string `json:"blobs"`
				}
				require.NoError(t, json.Unmarshal(b, &m))
				require.ElementsMatch(t, want, m.Blobs)
				found += len(want)
			})
		}
	}
	require.NotZero(t, found)
}
