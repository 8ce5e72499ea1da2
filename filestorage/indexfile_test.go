package filestorage

import (
	"bufio"
	"bytes"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"zodbrepl/internal/fault"
)

const (
	goodPos    = "\x80\x03K\xc8."
	goodBucket = "\x80\x03C\x06\x00\x00\x00\x00\x00\x00C\x08\x00\x01\x00\x00\x00\x00\x00\x34\x86."
	goodEnd    = "\x80\x03N."
)

// old returns an index in the form of one dictionary, with that pickled index.
func old(index string) string { return "}(U\x05index" + index + "U\x03posK\xc8u." }

func TestForeignIndexesAreRead(t *testing.T) {
	pair := "(U\x06\x00\x00\x00\x00\x00\x00U\x08\x00\x01\x00\x00\x00\x00\x00\x34t"
	bucket := "(cBTrees._fsBTree\nfsBucket\no((U\x02\x00\x01U\x06\x00\x00\x00\x00\x00\x34ttb"
	for name, in := range map[string]string{
		"today's":                              goodPos + goodBucket + goodEnd,
		"Python 2's":                           "K\xc8.(U\x06\x00\x00\x00\x00\x00\x00U\x08\x00\x01\x00\x00\x00\x00\x00\x34t.N.",
		"with memo numbers":                    "K\xc8.(U\x06\x00\x00\x00\x00\x00\x00q\x00U\x08\x00\x01\x00\x00\x00\x00\x00\x34r\x01\x00\x00\x00tp2\n.N.",
		"with long strings":                    "K\xc8.(T\x06\x00\x00\x00\x00\x00\x00\x00\x00\x00T\x08\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x34t.N.",
		"with a long position":                 "L200L\n." + goodBucket + goodEnd,
		"with a decimal position":              "I200\n." + goodBucket + goodEnd,
		"with a binary long position":          "\x80\x02\x8a\x02\xc8\x00." + goodBucket + goodEnd,
		"with two bytes of position":           "M\xc8\x00." + goodBucket + goodEnd,
		"with four bytes of position":          "J\xc8\x00\x00\x00." + goodBucket + goodEnd,
		"a dictionary of oids":                 old("}U\x08\x00\x00\x00\x00\x00\x00\x00\x01K\x34s"),
		"a dictionary of oids, made at once":   old("(U\x08\x00\x00\x00\x00\x00\x00\x00\x01K\x34d"),
		"a dictionary with a memo":             "}q\x01(U\x05indexq\x02}q\x03U\x08\x00\x00\x00\x00\x00\x00\x00\x01q\x04K\x34sU\x03posq\x05K\xc8u.",
		"a list of buckets":                    old("ccopy_reg\n_reconstructor\n(cZODB.fsIndex\nfsIndex\nc__builtin__\nobject\nNtR}(U\x0dstate_versionK\x01U\x05_data]" + pair + "aub"),
		"a list of buckets, of an old class":   old("(cZODB.fsIndex\nfsIndex\no}(U\x0dstate_versionK\x01U\x05_data](" + pair + "eub"),
		"a list of buckets, of an instance":    old("(iZODB.fsIndex\nfsIndex\n}(U\x0dstate_versionK\x01U\x05_data(" + pair + "lub"),
		"a list of buckets, of a new object":   old("cZODB.fsIndex\nfsIndex\n)\x81}(U\x0dstate_versionK\x01U\x05_data](" + pair + "eub"),
		"a dictionary of buckets":              old("(cZODB.fsIndex\nfsIndex\no}U\x05_data}U\x06\x00\x00\x00\x00\x00\x00" + bucket + "ssb"),
		"a tree of one bucket":                 old("(cZODB.fsIndex\nfsIndex\no}U\x05_data(cBTrees._OOBTree\nOOBTree\no((((U\x06\x00\x00\x00\x00\x00\x00" + bucket + "ttttbsb"),
		"a tree of several buckets, of tuples": old("(cZODB.fsIndex\nfsIndex\no}U\x05_data(cBTrees._OOBTree\nOOBTree\no)(cBTrees._OOBTree\nOOBucket\no)(cBTrees._OOBTree\nOOBucket\no(U\x06\x00\x00\x00\x00\x00\x00" + bucket + "t\x85b\x86b\x86bsb"),
	} {
		t.Run(name, func(t *testing.T) {
			x, pos, err := ReadIndex(strings.NewReader(in), "Data.fs.index")
			require.NoError(t, err)
			require.EqualValues(t, 200, pos)
			require.Equal(t, map[OID]int64{1: 52}, maps.Collect(x.All()))
		})
	}
	x, _, err := ReadIndex(strings.NewReader(old("(cZODB.fsIndex\nfsIndex\no}U\x05_data(cBTrees._OOBTree\nOOBTree\noNbsb")), "")
	require.NoError(t, err, "an empty tree")
	require.Zero(t, x.Len())
}

func TestWhatIsNoIndexIsRefused(t *testing.T) {
	cyclic := old("(cZODB.fsIndex\nfsIndex\no}U\x05_data(cBTrees._OOBTree\nOOBTree\no)(cBTrees._OOBTree\nOOBucket\noq\x00)h\x00\x86b\x86bsb")
	for name, c := range map[string]struct{ in, want string }{
		"an empty file":                        {"", "ends in the middle"},
		"only a position":                      {goodPos, "ends in the middle"},
		"no end":                               {goodPos + goodBucket, "ends in the middle"},
		"bytes after the end":                  {goodPos + goodEnd + "x", "after the end"},
		"another protocol":                     {"\x80\x04K\xc8.", "protocol 4"},
		"text":                                 {"text", "missing on the stack"},
		"a position beyond all files":          {"\x80\x03\x8a\x07\x00\x00\x00\x00\x00\x00\x01.\x80\x03N.", "saved at position"},
		"a negative position":                  {"J\xff\xff\xff\xff.N.", "saved at position -1"},
		"a negative long position":             {"\x8a\x01\xff.N.", "saved at position -1"},
		"a position of nine bytes":             {"\x8a\x09123456789.N.", "9 bytes"},
		"a position that is no number":         {"I2x\n.N.", "no position"},
		"a position of two values":             {"K\xc8K\xc8.N.", "opcode"},
		"a prefix of five bytes":               {goodPos + strings.Replace(goodBucket, "C\x06\x00", "C\x05", 1), "5 bytes, not 6"},
		"a bucket of nine bytes":               {goodPos + strings.Replace(goodBucket, "C\x08\x00", "C\x09\x00\x00", 1), "9 bytes"},
		"an empty bucket":                      {goodPos + "C\x06\x00\x00\x00\x00\x00\x00C\x00\x86." + goodEnd, "0 bytes"},
		"a bucket of a forged length":          {goodPos + "C\x06\x00\x00\x00\x00\x00\x00B\xff\xff\xff\xff\x86.", "more than an index has"},
		"a bucket twice":                       {goodPos + goodBucket + goodBucket + goodEnd, "not in order"},
		"oids not in order":                    {goodPos + "C\x06\x00\x00\x00\x00\x00\x00C\x10\x00\x02\x00\x01\x00\x00\x00\x00\x00\x34\x00\x00\x00\x00\x00\x34\x86." + goodEnd, "not in order"},
		"an oid twice in a bucket":             {goodPos + "C\x06\x00\x00\x00\x00\x00\x00C\x10\x00\x01\x00\x01\x00\x00\x00\x00\x00\x34\x00\x00\x00\x00\x00\x34\x86." + goodEnd, "not in order"},
		"a position of an object at the end":   {goodPos + strings.Replace(goodBucket, "\x34", "\xc8", 1) + goodEnd, "is at 200"},
		"a position of an object in the magic": {goodPos + strings.Replace(goodBucket, "\x34", "\x03", 1) + goodEnd, "is at 3"},
		"a pair without its end":               {goodPos + strings.Replace(goodBucket, "\x86.", "\x87.", 1), "where a pair ends"},
		"a pair that goes on":                  {goodPos + strings.Replace(goodBucket, "\x86.", "\x86N", 1), "where a pickle ends"},
		"a pair of a number":                   {goodPos + "K\x01", "where a string begins"},
		"no dictionary":                        {"].", "neither"},
		"a dictionary without a position":      {"}U\x05index}s.", "no position"},
		"a dictionary without an index":        {"}U\x03posK\xc8s.", "no index"},
		"another class":                        {old("(cos\nsystem\no}b"), "no index"},
		"a class without a state":              {old("(cZODB.fsIndex\nfsIndex\no"), "no state"},
		"an unknown state":                     {old("(cZODB.fsIndex\nfsIndex\no}U\x0dstate_versionK\x02sb"), "state version 2"},
		"a state of no list":                   {old("(cZODB.fsIndex\nfsIndex\no}(U\x0dstate_versionK\x01U\x05_dataNub"), "no list"},
		"a state of no tree":                   {old("(cZODB.fsIndex\nfsIndex\no}U\x05_dataNsb"), "neither a dictionary"},
		"a list of no pairs":                   {old("(cZODB.fsIndex\nfsIndex\no}(U\x0dstate_versionK\x01U\x05_data]Naub"), "no pair"},
		"buckets that go round":                {cyclic, "broken"},
		"a key without a value":                {"}(U\x03posu.", "without a value"},
		"a key that is no string":              {"}K\x01K\x02s.", "no string"},
		"nothing on the stack":                 {"}s.", "missing on the stack"},
		"no mark":                              {"}u.", "missing on the stack"},
		"values left over":                     {"}}.", "leaves 2 values"},
		"a memo far away":                      {"}r\xff\xff\xff\x7f.", "is put before"},
		"a memo of nothing":                    {"}h\x05.", "never put"},
		"a call of a function":                 {"cos\nsystem\n(U\x02lstR.", "neither"},
		"a persistent reference":               {"}Q.", "opcode 0x51"},
		"a line without an end":                {"}c" + strings.Repeat("x", 300), "a line of more"},
		"a string of a forged length":          {"}T\xff\xff\xff\x7f", "more than an index has"},
	} {
		t.Run(name, func(t *testing.T) {
			memory := allocated(func() {
				_, _, err := ReadIndex(strings.NewReader(c.in), "Data.fs.index")
				require.ErrorIs(t, err, ErrBadIndex)
				require.ErrorContains(t, err, c.want)
				require.ErrorContains(t, err, "Data.fs.index: at offset ")
				require.Contains(t, fault.Next(err), "remade")
			})
			require.Less(t, memory, uint64(1<<20))
		})
	}
	p := &pickleReader{r: bufio.NewReader(strings.NewReader("(" + strings.Repeat("]", 1<<20))), name: "Data.fs.index"}
	_, _, err := p.oldIndex('}', 1<<20)
	require.ErrorContains(t, err, "too much memory")
	require.Less(t, p.off, int64(1<<15), "every value counts")

	_, _, err = ReadIndex(iotest.ErrReader(errBroken), "Data.fs.index")
	require.ErrorIs(t, err, errBroken)
	require.NotErrorIs(t, err, ErrBadIndex, "a disk that fails says nothing of the index")
}

func TestAnIndexCutAnywhereIsRefused(t *testing.T) {
	whole := goodPos + goodBucket + goodEnd
	for n := range whole {
		_, _, err := ReadIndex(strings.NewReader(whole[:n]), "Data.fs.index")
		require.ErrorIs(t, err, ErrBadIndex)
		_, _, err = ReadIndex(io.MultiReader(strings.NewReader(whole[:n]), iotest.ErrReader(errBroken)), "Data.fs.index")
		require.ErrorIs(t, err, errBroken)
	}
	_, _, err := ReadIndex(iotest.OneByteReader(strings.NewReader(whole)), "Data.fs.index")
	require.NoError(t, err)
}

// The bytes are those of fsIndex.save in ZODB 6.4.
func TestPositionsArePickledAsPythonDoes(t *testing.T) {
	for pos, want := range map[int64]string{
		4: "K\x04", 255: "K\xff", 256: "M\x00\x01", 300: "M\x2c\x01", 65535: "M\xff\xff", 70000: "Jp\x11\x01\x00",
		1<<31 - 1: "J\xff\xff\xff\x7f", 1 << 31: "\x8a\x05\x00\x00\x00\x80\x00", 1 << 32: "\x8a\x05\x00\x00\x00\x00\x01",
		1 << 40: "\x8a\x06\x00\x00\x00\x00\x00\x01", 1 << 47: "\x8a\x07\x00\x00\x00\x00\x00\x80\x00",
	} {
		var b bytes.Buffer
		require.NoError(t, WriteIndex(&b, &Index{}, pos))
		require.Equal(t, "\x80\x03"+want+"."+goodEnd, b.String(), "%d", pos)
		_, got, err := ReadIndex(&b, "Data.fs.index")
		require.NoError(t, err)
		require.Equal(t, pos, got)
	}
}

func TestPositionsThatDoNotFitAreNotWritten(t *testing.T) {
	x := &Index{}
	for _, pos := range []int64{-1, 1 << 48} {
		require.Error(t, WriteIndex(io.Discard, x, pos))
		y := &Index{}
		y.Set(1, pos)
		require.ErrorContains(t, WriteIndex(io.Discard, y, 100), "does not fit")
	}
}

type brokenWriter struct{ left int }

func (w *brokenWriter) Write(p []byte) (int, error) {
	if w.left -= len(p); w.left < 0 {
		return 0, errBroken
	}
	return len(p), nil
}

func TestWriteErrorsAreReported(t *testing.T) {
	x := &Index{}
	for i := range 200_000 {
		x.Set(OID(i), 52)
	}
	for _, n := range []int{0, 100, 1 << 20} {
		require.ErrorIs(t, WriteIndex(&brokenWriter{n}, x, 100), errBroken)
	}
}

func TestSaveIndex(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "Data.fs.index")
	names := func() (names []string) {
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	x := &Index{}
	x.Set(1, 52)
	require.NoError(t, os.WriteFile(path+".index_tmp", bytes.Repeat([]byte("left over"), 100), 0o600), "of a crash")
	require.NoError(t, SaveIndex(path, x, 200))
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, goodPos+goodBucket+goodEnd, string(b))
	require.Equal(t, []string{"Data.fs.index"}, names())

	x.Set(2, 1<<50)
	require.ErrorContains(t, SaveIndex(path, x, 200), path)
	after, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, b, after, "a failure leaves what was there")
	require.Equal(t, []string{"Data.fs.index"}, names(), "and nothing else")

	require.NoError(t, os.Remove(path))
	require.NoError(t, os.Mkdir(path, 0o700))
	x.Set(2, 52)
	require.Error(t, SaveIndex(path, x, 200), "a directory is in the way")
	require.Equal(t, []string{"Data.fs.index"}, names())
	require.ErrorIs(t, SaveIndex(filepath.Join(dir, "no", "Data.fs.index"), x, 200), fs.ErrNotExist)
}
