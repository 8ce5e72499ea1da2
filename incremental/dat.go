package incremental

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"zodbrepl/internal/fault"
)

// datLine is a line of repozo's .dat file: the increment's file, its positions and the md5 of its raw bytes.
//
//	path start end md5
//
// Readers use the base name of the path. We write the base name alone, so that no directory name with a space in
// it breaks a line (repozo splits on white space), and a shipped copy reads the same.
type datLine struct {
	file       string // base name
	start, end int64
	md5        string
}

func (l datLine) String() string { return fmt.Sprintf("%s %d %d %s\n", l.file, l.start, l.end, l.md5) }

const maxDat = 64 << 20

// parseDat reads the lines. A last line that was cut by a crash is dropped and said by torn.
func parseDat(b []byte) (lines []datLine, torn bool, err error) {
	for n := 1; len(b) > 0; n++ {
		text, rest, whole := bytes.Cut(b, []byte("\n"))
		b = rest
		l, err := parseDatLine(string(text))
		if err != nil {
			if !whole {
				return lines, true, nil
			}
			return lines, false, fmt.Errorf("line %d: %w", n, err)
		}
		if !whole { // the md5 may be cut and still look right only if it is whole
			torn = true
		}
		lines = append(lines, l)
	}
	return lines, torn, nil
}

func parseDatLine(s string) (datLine, error) {
	f := strings.Fields(s)
	if len(f) < 4 {
		return datLine{}, fmt.Errorf("%q: want path, start, end and md5", s)
	}
	// The path may hold spaces; the last three fields cannot.
	rest := f[len(f)-3:]
	head := strings.TrimSpace(s)
	for i := 2; i >= 0; i-- {
		head = strings.TrimRight(strings.TrimSuffix(head, rest[i]), " \t")
	}
	l := datLine{file: path.Base(head), md5: rest[2]}
	var err1, err2 error
	l.start, err1 = strconv.ParseInt(rest[0], 10, 64)
	l.end, err2 = strconv.ParseInt(rest[1], 10, 64)
	if err1 != nil || err2 != nil || l.start < 0 || l.end < l.start || !isHex(l.md5, 16) {
		return l, fmt.Errorf("%q: want path, start, end and md5", s)
	}
	return l, nil
}

// readDat reads the .dat of the chain that begins with full. A missing file has no lines.
func readDat(ctx context.Context, src Source, full Stamp) (lines []datLine, torn bool, err error) {
	b, err := readSmall(ctx, src, string(full)+datExt, maxDat)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err == nil {
		if lines, torn, err = parseDat(b); err != nil {
			err = fault.New(fault.Unverified, "not a .dat of repozo").Because(err)
		}
	}
	if err != nil {
		return nil, false, fmt.Errorf("%s/%s%s: %w", src, full, datExt, err)
	}
	return lines, torn, nil
}

func formatDat(lines []datLine) []byte {
	var b bytes.Buffer
	for _, l := range lines {
		b.WriteString(l.String())
	}
	return b.Bytes()
}
