package main

import (
	"context"
	"io"
	"io/fs"

	"zodbrepl/incremental"
	"zodbrepl/transport"
)

// lazySource opens a place only when it is read, so that one that is not there is a condition and not a failure.
type lazySource struct{ where string }

func (s lazySource) String() string { return transport.TargetName(s.where) }

func (s lazySource) List(ctx context.Context) ([]fs.DirEntry, error) {
	t, err := transport.OpenTarget(ctx, s.where)
	if err != nil {
		return nil, err
	}
	defer t.Close()
	return t.List(ctx)
}

func (s lazySource) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	t, err := transport.OpenTarget(ctx, s.where)
	if err != nil {
		return nil, err
	}
	defer t.Close()
	return t.Open(ctx, name)
}

// tell sends the standby's answer there.
func (s lazySource) tell(ctx context.Context, a incremental.Answer) error {
	t, err := transport.OpenTarget(ctx, s.where)
	if err != nil {
		return err
	}
	defer t.Close()
	return transport.SendAnswer(ctx, t, a)
}
