package transport

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"

	"github.com/pkg/sftp"

	"zodbrepl/incremental"
)

// smallFiles fetches manifests before they are asked for. Each takes two round trips, and a repository may hold
// thousands, which are read one after the other, upwards or downwards. How many are fetched ahead grows with every one
// that was wanted, so a look at the newest fetches little else.
//
// What was fetched is good for one reading, and until the next listing: a manifest does not change once it is there,
// but it may be repaired.
type smallFiles struct {
	mu    sync.Mutex
	names []string // in order
	size  map[string]int64
	index map[string]int
	ready map[string]*fetched
	last  int // the index that was asked for last; -1: none
	ahead int // how many to fetch
}

type fetched struct {
	done    chan struct{}
	content []byte
	err     error
}

const (
	maxSmall = 64 << 10
	maxAhead = 32
)

// listed begins anew with what is in the directory.
func (s *smallFiles) listed(entries []fs.DirEntry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.names, s.last, s.ahead = nil, -1, 0
	s.size, s.index, s.ready = make(map[string]int64), make(map[string]int), make(map[string]*fetched)
	for _, e := range entries {
		fi, err := e.Info()
		if _, ok := incremental.StampOfManifest(e.Name()); !ok || err != nil || !fi.Mode().IsRegular() || fi.Size() > maxSmall {
			continue
		}
		s.index[e.Name()] = len(s.names)
		s.size[e.Name()] = fi.Size()
		s.names = append(s.names, e.Name())
	}
}

// take returns what was fetched of a file, nil when it was not, and lets fetch get what will be wanted next.
func (s *smallFiles) take(name string, fetch func(name string, size int64, f *fetched)) *fetched {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := s.index[name]
	if !ok {
		return nil
	}
	got := s.ready[name]
	delete(s.ready, name)
	step := i - s.last
	if s.last >= 0 && (step == 1 || step == -1) {
		s.ahead = min(2*s.ahead+1, maxAhead)
	} else {
		s.ahead = 0
	}
	s.last = i
	for n := range s.ahead {
		j := i + (n+1)*step
		if j < 0 || j >= len(s.names) {
			break
		}
		next := s.names[j]
		if s.ready[next] == nil {
			f := &fetched{done: make(chan struct{})}
			s.ready[next] = f
			go fetch(next, s.size[next], f)
		}
	}
	return got
}

// openSmall returns a file that was fetched ahead, nil for one that was not.
func (t *sftpTarget) openSmall(ctx context.Context, name string) io.ReadCloser {
	if !strings.HasSuffix(name, ".manifest") {
		return nil
	}
	f := t.small.take(name, func(name string, size int64, f *fetched) {
		defer close(f.done)
		f.content, f.err = t.fetch(ctx, name, size)
	})
	if f == nil {
		return nil
	}
	select {
	case <-f.done:
	case <-ctx.Done():
		return nil
	}
	if f.err != nil {
		return nil // whatever it is, the usual way will say it better
	}
	return io.NopCloser(bytes.NewReader(f.content))
}

// fetch reads a whole file that should have that size, on the connection that there is.
func (t *sftpTarget) fetch(ctx context.Context, name string, size int64) ([]byte, error) {
	s, err := t.session(ctx)
	if err != nil {
		return nil, err
	}
	var f *sftp.File
	err = s.ask(ctx, func() (err error) { f, err = s.client.OpenFile(t.at(name), os.O_RDONLY); return err })
	if err != nil {
		return nil, err
	}
	defer func() { go func() { _ = s.ask(context.Background(), f.Close) }() }()
	b := make([]byte, size+1)
	var n int
	err = s.ask(ctx, func() (err error) {
		if n, err = f.ReadAt(b, 0); err == io.EOF {
			err = nil
		}
		return err
	})
	if err == nil && int64(n) != size {
		err = errors.New("it has another size now")
	}
	return b[:n], err
}
