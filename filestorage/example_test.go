package filestorage_test

import (
	"context"
	"fmt"
	"log"

	"zodbrepl/filestorage"
)

func ExampleFile_Transactions() {
	f, closer, err := filestorage.Open("../fixtures/data/empty-txn.fs")
	if err != nil {
		log.Fatal(err)
	}
	defer closer.Close()
	for t, err := range f.Transactions(filestorage.MagicSize) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(t.Pos, t.TID)
	}
	e, err := f.Committed(context.Background(), filestorage.MagicSize)
	fmt.Println(e.End, e.Transactions, err)
	// Output:
	// 4 03f6edc100000000
	// 166 03f6edc205555555
	// 217 03f6edc30aaaaaaa
	// 248 03f6edc410000000
	// 405 03f6edc515555555
	// 453 5 <nil>
}
