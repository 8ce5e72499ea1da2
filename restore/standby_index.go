package restore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"zodbrepl/filestorage"
	"zodbrepl/internal/fault"
)

// needIndex loads or builds the index of Data.fs as it is.
func (s *standby) needIndex(ctx context.Context) error {
	if s.index != nil || s.file == nil || s.state.Applied.Position == 0 {
		return nil
	}
	position := s.state.Applied.Position
	index, from, err := s.file.LoadIndex(s.data + ".index")
	if err != nil || from > position {
		if !errors.Is(err, fs.ErrNotExist) {
			s.log.Info("the index is built anew", "storage", s.data, "cause", err)
		}
		index, from = &filestorage.Index{}, filestorage.MagicSize
	} else {
		s.indexSaved = from == position
	}
	if _, err := s.file.ExtendIndex(ctx, index, from, position, nil); err != nil {
		if errors.Is(err, fault.Unverified) { // what was applied was good
			return s.diverged(err.Error())
		}
		return err
	}
	s.index = index
	return nil
}

// saveIndex writes Data.fs.index, so that ZEO starts at once.
func (s *standby) saveIndex(ctx context.Context) error {
	if err := s.needIndex(ctx); err != nil {
		return err
	}
	if s.index == nil || s.indexSaved {
		return nil
	}
	if err := filestorage.SaveIndex(s.data+".index", s.index, s.state.Applied.Position); err != nil {
		return fmt.Errorf("index of %s: %w", s.data, err)
	}
	s.indexSaved = true
	return nil
}
