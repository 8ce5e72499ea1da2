// Package incremental is the repository: a directory of increments in repozo's layout, each with a manifest.
//
// A chain is a full and the deltas that continue it. [Backup] writes the next increment of a live Data.fs;
// [Open] and [Repository.Chains] read what there is, from any [Source]; [Repository.Copy] gives an increment's
// raw bytes, verified; [Verify] checks everything.
//
// Promises: an increment that has its manifest is complete and durable. A crash at any point leaves a repository
// that this package and the real repozo read correctly. No delta is written across a gap, and no full without a
// reason in the result.
package incremental
