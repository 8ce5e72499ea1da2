// Limit tells what one core needs for one step of the work on a file, with nothing beside it: the limits in the table of
// make bench. It prints seconds.
//
//	limit md5 FILE             md5 is one stream, so no number of cores makes it faster
//	limit encode CODEC FILE    what a backup does with the bytes, at the codec's usual level
//	limit decode CODEC FILE    what verify and recover do
//
// The codecs work on some stretches of the file, evenly spread; the time is scaled to the whole of it.
package main

import (
	"bytes"
	"crypto/md5"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"time"

	"zodbrepl/incremental"
)

const (
	stretch   = 32 << 20
	stretches = 4
)

func main() {
	runtime.GOMAXPROCS(1)
	seconds, err := measure(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "limit:", err)
		os.Exit(1)
	}
	fmt.Printf("%.6f\n", seconds)
}

func measure(args []string) (float64, error) {
	switch {
	case len(args) == 2 && args[0] == "md5":
		return hashing(args[1])
	case len(args) == 3 && (args[0] == "encode" || args[0] == "decode"):
		codec, err := incremental.CodecByName(args[1])
		if err != nil {
			return 0, err
		}
		return sampled(args[2], func(raw []byte) (time.Duration, error) { return coding(codec, raw, args[0] == "decode") })
	}
	return 0, errors.New("usage: limit md5 FILE, or limit encode|decode CODEC FILE")
}

func hashing(path string) (float64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	began := time.Now()
	_, err = io.CopyBuffer(struct{ io.Writer }{md5.New()}, struct{ io.Reader }{f}, make([]byte, 1<<20))
	return time.Since(began).Seconds(), err
}

// sampled gives some stretches of the file to work, which tells how long it took, and scales the sum to the whole.
func sampled(path string, work func(raw []byte) (time.Duration, error)) (float64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	size := info.Size()
	buf := make([]byte, stretch)
	var done int64
	var spent time.Duration
	for i := range int64(stretches) {
		at := max(size*i/stretches, done)
		n, err := f.ReadAt(buf, at)
		if err != nil && err != io.EOF {
			return 0, err
		}
		if n == 0 {
			break // a small file has been read whole
		}
		d, err := work(buf[:n])
		if err != nil {
			return 0, err
		}
		spent += d
		done += int64(n)
	}
	return spent.Seconds() * float64(size) / float64(max(1, done)), nil
}

// coding encodes raw and tells how long that took, or how long it takes to get it back.
func coding(codec incremental.Codec, raw []byte, back bool) (time.Duration, error) {
	var stored bytes.Buffer
	began := time.Now()
	w := codec.NewWriter(&stored, incremental.Effort{Jobs: 1})
	if _, err := w.Write(raw); err != nil {
		return 0, err
	}
	err := w.Close()
	if err != nil || !back {
		return time.Since(began), err
	}
	began = time.Now()
	r, err := codec.NewReader(&stored, 1)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	if n, err := io.Copy(io.Discard, r); err != nil || n != int64(len(raw)) {
		return 0, fmt.Errorf("%s: %d bytes of %d came back: %v", codec.Name(), n, len(raw), err)
	}
	return time.Since(began), nil
}
