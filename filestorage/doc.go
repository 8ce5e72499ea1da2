// Package filestorage knows the format of a Data.fs, the file of ZODB's FileStorage, and nothing else: no
// repository, no network, no policy.
//
// It reads through [Reader], so that a file may grow while it is read and faults can be injected:
//
//	f, err := filestorage.Open("Data.fs")
//	...
//	for t, err := range f.Transactions(filestorage.MagicSize, 0) {
//		fmt.Println(t.Pos, t.TID, t.TID.Time())
//	}
//
// Promises: scanning reads transaction headers and never a transaction whole; what is still being written at
// the end of a live file is told apart from damage in its middle; no forged length makes it allocate, loop or
// panic. All positions and lengths are bytes; a position is an offset from the start of Data.fs.
//
// The facts of the format come from ZODB: src/ZODB/FileStorage/format.py, FileStorage.py and fsIndex.py.
package filestorage
