package filestorage

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"testing"
)

// seedFiles adds the files of the real ZODB that are small enough, and one of ours.
func seedFiles(f *testing.F, pattern string, most int) {
	paths, err := filepath.Glob(filepath.Join("..", "fixtures", "data", pattern))
	if err != nil || len(paths) == 0 {
		f.Fatal("no seeds", err)
	}
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			f.Fatal(err)
		}
		if len(b) <= most {
			f.Add(b)
		}
	}
}

// boundary returns whether a scan that went on from MagicSize has seen pos as an end.
func (s scanned) ends() map[int64]bool {
	ends := map[int64]bool{MagicSize: true}
	for _, t := range s.txns {
		ends[t.End()] = true
	}
	return ends
}

func FuzzTransactions(f *testing.F) {
	seedFiles(f, "*.fs", 5000)
	f.Add(sample().b)
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := NewFile(memory(b), "Data.fs")
		if err != nil {
			if ValidMagic(b) {
				t.Fatal(err)
			}
			return
		}
		file.pause = 0
		s := scan(file, MagicSize)
		pos := int64(MagicSize)
		for _, tr := range s.txns {
			if tr.Pos != pos || tr.End() <= pos || tr.End() > int64(len(b)) {
				t.Fatalf("transaction at %d ends at %d, after %d", tr.Pos, tr.End(), pos)
			}
			pos = tr.End()
			tr.file = file
			if _, _, _, err := tr.Meta(); err != nil {
				t.Fatal(err)
			}
			if back, ok, err := file.LastBefore(pos); err != nil || !ok || back.Pos != tr.Pos {
				t.Fatalf("LastBefore(%d) is %d, %v, %v", pos, back.Pos, ok, err)
			}
		}
		for _, r := range s.recs {
			if _, _, err := file.Resolve(r); err != nil && !isCorrupt(err) {
				t.Fatal(err)
			}
		}
		e, err := file.Committed(context.Background(), MagicSize)
		if err != nil && !isCorrupt(err) {
			t.Fatal(err)
		}
		if err == nil && (e.InFlight != int64(len(b))-e.End || (e.InFlight == 0) != (e.Tail == TailClean)) {
			t.Fatalf("%+v of %d bytes", e, len(b))
		}
		if s.err != nil && !isCorrupt(s.err) {
			t.Fatal(s.err)
		}
		if s.err == nil && !s.ends()[e.End] {
			t.Fatalf("Committed ends at %d, where no transaction does", e.End)
		}
	})
}

// The Checker and the scan must agree about the committed part.
func FuzzChecker(f *testing.F) {
	paths, _ := filepath.Glob(filepath.Join("..", "fixtures", "data", "*.fs"))
	for i, p := range paths {
		if b, err := os.ReadFile(p); err == nil && len(b) < 5000 {
			f.Add(b, uint8(i*11), uint64(0))
		}
	}
	f.Add(sample().b, uint8(7), uint64(sample().tidAt(2)))
	f.Fuzz(func(t *testing.T, b []byte, piece uint8, stop uint64) {
		if !ValidMagic(b) {
			if check(b, 0, int(piece), 0).err == "" {
				t.Fatal("accepted without a magic")
			}
			return
		}
		file, err := NewFile(memory(b), "Data.fs")
		if err != nil {
			t.Fatal(err)
		}
		file.pause = 0
		s := scan(file, MagicSize)
		end := int64(MagicSize)
		if e, err := file.Committed(context.Background(), MagicSize); err == nil {
			end = e.End
		} else if len(s.txns) > 0 {
			end = s.txns[len(s.txns)-1].End()
		}
		whole, pieces := check(b[:end], 0, 0, 0), check(b[:end], 0, int(piece), 0)
		whole.accepted, pieces.accepted = 0, 0
		if !equalChecked(whole, pieces) {
			t.Fatalf("in pieces of %d: %+v, not %+v", piece, pieces, whole)
		}
		if s.err == nil {
			if whole.err != "" {
				t.Fatalf("the scan took what the Checker refuses: %s", whole.err)
			}
			if len(s.recs) != len(whole.recs) || len(s.txns) != len(whole.txns) {
				t.Fatalf("%d of %d transactions, %d of %d records", len(whole.txns), len(s.txns), len(whole.recs), len(s.recs))
			}
			for i := range s.recs {
				if s.recs[i] != whole.recs[i] {
					t.Fatalf("record %d: %+v, not %+v", i, whole.recs[i], s.recs[i])
				}
			}
			x := &Index{}
			if _, err := file.ExtendIndex(context.Background(), x, MagicSize, end, nil); err != nil {
				t.Fatal(err)
			}
		} else if isCorrupt(s.err) && whole.err == "" && check(b, 0, 0, 0).err == "" {
			t.Fatalf("the Checker took what the scan refuses: %v", s.err)
		}
		stopped := check(b[:end], 0, int(piece), TID(stop))
		if stopped.err == "" && stopped.accepted != stopped.ext.End && stopped.ext.End != 0 {
			t.Fatalf("stopped at %d, accepted %d", stopped.ext.End, stopped.accepted)
		}
	})
}

func equalChecked(a, b checked) bool {
	if len(a.recs) != len(b.recs) || len(a.txns) != len(b.txns) || a.err != b.err {
		return false
	}
	for i := range a.recs {
		if a.recs[i] != b.recs[i] || a.heads[i] != b.heads[i] {
			return false
		}
	}
	return a.ext == b.ext && a.records == b.records && a.reversed == b.reversed && a.packed == b.packed
}

func FuzzReadIndex(f *testing.F) {
	seedFiles(f, filepath.Join("index", "*.index"), 5000)
	f.Add([]byte(goodPos + goodBucket + goodEnd))
	f.Fuzz(func(t *testing.T, b []byte) {
		x, pos, err := ReadIndex(bytes.NewReader(b), "Data.fs.index")
		if err != nil {
			if !errors.Is(err, ErrBadIndex) {
				t.Fatal(err)
			}
			return
		}
		if x.Len() > len(b)/8 {
			t.Fatalf("%d objects in %d bytes", x.Len(), len(b))
		}
		var out bytes.Buffer
		if err := WriteIndex(&out, x, pos); err != nil {
			t.Fatal(err)
		}
		y, again, err := ReadIndex(&out, "Data.fs.index")
		if err != nil || again != pos || !maps.Equal(maps.Collect(x.All()), maps.Collect(y.All())) {
			t.Fatalf("not the same after writing: %v", err)
		}
	})
}

func FuzzIsBlob(f *testing.F) {
	for _, c := range blobRecords {
		f.Add([]byte(c.data))
		f.Add(deflated([]byte(c.data)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		is := IsBlob(b)
		if is && !bytes.HasPrefix(b, []byte(".z")) && !bytes.Contains(b, []byte("ZODB.blob\nBlob\n")) {
			t.Fatal("a blob without its class")
		}
		if is != IsBlob(b[:min(len(b), HeadSize)]) {
			t.Fatal("the head is not enough")
		}
	})
}

func FuzzParseTID(f *testing.F) {
	for _, s := range []string{"03d1a2b3c4d5e6f7", "0x03d1a2b3c4d5e6f7", "", "0x", "+3d1a2b3c4d5e6f7", "03d1_a2b3c4d5e6f"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		tid, err := ParseTID(s)
		if err != nil {
			return
		}
		if back, err := ParseTID(tid.String()); err != nil || back != tid {
			t.Fatal(back, err)
		}
		if at := tid.Time(); int(tid>>32)/60/24%31+1 != at.Day() {
			return // the 31st of a month of 30 days
		} else if TIDFromTime(at) > tid || tid-TIDFromTime(at) > 1 && uint64(tid)>>32 == uint64(TIDFromTime(at))>>32 {
			t.Fatal(tid, at, TIDFromTime(at))
		}
	})
}
