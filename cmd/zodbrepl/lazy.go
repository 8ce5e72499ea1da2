package main

import (
	"context"
	"io"
	"io/fs"
	"sync"

	"zodbrepl/incremental"
	"zodbrepl/transport"
)

// lazySource opens a place only when it is read, so that one that is not there is a condition and not a failure. A
// connection is kept; a directory is looked up each time, since a mount may come and go.
type lazySource struct {
	where string
	o     transport.TargetOptions

	mu   sync.Mutex
	kept transport.Target
}

func newLazySource(where string, o transport.TargetOptions) *lazySource {
	return &lazySource{where: where, o: o}
}

func (s *lazySource) String() string { return transport.TargetName(s.where) }

// open returns the place, and what to call when done with it.
func (s *lazySource) open(ctx context.Context) (transport.Target, func(), error) {
	if transport.LocalDir(s.where) != "" {
		t, err := transport.OpenTarget(ctx, s.where, s.o)
		if err != nil {
			return nil, nil, err
		}
		return t, func() { t.Close() }, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kept == nil {
		t, err := transport.OpenTarget(ctx, s.where, s.o)
		if err != nil {
			return nil, nil, err
		}
		s.kept = t
	}
	return s.kept, func() {}, nil
}

// List implements incremental.Source.
func (s *lazySource) List(ctx context.Context) ([]fs.DirEntry, error) {
	t, done, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	return t.List(ctx)
}

// Open implements incremental.Source.
func (s *lazySource) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	t, done, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	return t.Open(ctx, name)
}

// Rename implements incremental.Place.
func (s *lazySource) Rename(ctx context.Context, from, to string) error {
	t, done, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer done()
	return t.Rename(ctx, from, to)
}

// WriteFile implements incremental.Place.
func (s *lazySource) WriteFile(ctx context.Context, name string, content []byte) error {
	t, done, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer done()
	return transport.WriteFile(ctx, t, name, content)
}

// tell sends the standby's answer there.
func (s *lazySource) tell(ctx context.Context, a incremental.Answer) error {
	t, done, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer done()
	return transport.SendAnswer(ctx, t, a)
}

// Close ends a connection that was kept.
func (s *lazySource) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kept == nil {
		return nil
	}
	t := s.kept
	s.kept = nil
	return t.Close()
}
