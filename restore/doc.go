// Package restore turns increments back into a Data.fs: once, for a person ([Recover]), and continuously, for a
// standby ([Watch], [Promote]).
//
// Promises: nothing is applied that was not verified whole first. A standby's Data.fs is at every moment a byte prefix
// of the master's that ends on a commit boundary, or becomes so again when the next run cuts it back to the
// recorded position. What its state file claims is durable. A promoted node is never written to, and bytes that
// somebody else wrote are never cut off.
package restore
