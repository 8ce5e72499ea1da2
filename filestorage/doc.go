// Package filestorage knows the format of a Data.fs, the file of ZODB's FileStorage, and nothing else: no
// repository, no network, no policy.
//
// It reads through [Reader], so that a file may grow while it is read and faults can be injected:
//
//	f, closer, err := filestorage.Open("Data.fs")
//	...
//	defer closer.Close()
//	for t, err := range f.Transactions(filestorage.MagicSize) {
//		fmt.Println(t.Pos, t.TID, t.TID.Time(), err)
//	}
//
// [File.Committed] finds the end of what is committed. [Checker] holds a stream of bytes to the format. [Index] is
// Data.fs.index, [Lock] is Data.fs.lock, and [IsBlob] recognises the records of blobs.
//
// Promises: scanning reads transaction headers and never a transaction whole; what is still being written at
// the end of a live file is told apart from damage in its middle; no forged length makes it allocate, loop or
// panic. All positions and lengths are bytes; a position is an offset from the start of Data.fs.
//
// The facts of the format come from ZODB: src/ZODB/FileStorage/format.py, FileStorage.py and fsIndex.py.
package filestorage
