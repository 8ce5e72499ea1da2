// Package interop tests zodbrepl against the real ZODB, ZEO and repozo, in both directions:
//
//	make interop
//
// It needs the Python environments .venv and .venv58, which scripts/venv.sh makes.
package interop
