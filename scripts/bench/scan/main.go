// Scan reads every header of a Data.fs, of transactions and data records, and tells how fast: for make bench.
package main

import (
	"fmt"
	"os"
	"time"

	"zodbrepl/filestorage"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: scan DATA.FS")
		os.Exit(2)
	}
	if err := scan(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "scan:", err)
		os.Exit(1)
	}
}

func scan(path string) error {
	f, closer, err := filestorage.Open(path)
	if err != nil {
		return err
	}
	defer closer.Close()
	began := time.Now()
	var transactions, records, end int64
	for t, err := range f.Transactions(filestorage.MagicSize) {
		if err != nil {
			return err
		}
		for _, err := range t.Records() {
			if err != nil {
				return err
			}
			records++
		}
		transactions++
		end = t.End()
	}
	fmt.Printf("%d bytes, %d transactions, %d records, %.3f GB/s\n", end, transactions, records, float64(end)/1e9/time.Since(began).Seconds())
	return nil
}
