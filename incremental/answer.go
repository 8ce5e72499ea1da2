package incremental

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io/fs"
	"slices"
	"strings"
	"time"

	"zodbrepl/filestorage"
)

// Answer is what a standby tells those that feed it: how far it has come, and in which role. It is a file in the
// repository that the standby reads, <host>.<hash of its Data.fs path>.standby, so it travels back through the
// target.
type Answer struct {
	Host    string `json:"host"`
	Data    string `json:"data"` // path of the standby's Data.fs
	Lineage string `json:"lineage"`
	Epoch   int    `json:"epoch"`
	Role    string `json:"role"` // "standby" or "promoted"
	// Promotion is the last that led to it, zero when there was none that is known.
	Promotion Promotion `json:"promotion,omitzero"`
	// Accepts says that the standby becomes the master when its master hands over to it.
	Accepts  bool            `json:"accepts_handover,omitempty"`
	Stamp    Stamp           `json:"stamp"`
	Position int64           `json:"position"`
	LastTID  filestorage.TID `json:"last_tid"`
	Applied  time.Time       `json:"applied"`
	// Condition is "current", or why nothing is applied; Message is its text for people.
	Condition string    `json:"condition"`
	Message   string    `json:"message,omitempty"`
	Updated   time.Time `json:"updated"`
}

const (
	answerExt = ".standby"
	maxAnswer = 1 << 20
)

// Name returns the name of the answer's file.
func (a Answer) Name() string {
	h := fnv.New32a()
	h.Write([]byte(a.Data))
	host := strings.Map(func(r rune) rune {
		if r == '-' || r == '.' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r
		}
		return '_'
	}, a.Host)
	return fmt.Sprintf("%s.%08x%s", host, h.Sum32(), answerExt)
}

// Encode returns the answer's JSON.
func (a Answer) Encode() ([]byte, error) {
	b, err := json.MarshalIndent(a, "", "  ")
	return append(b, '\n'), err
}

// ReadAnswers reads the answers of all standbys that read this repository. One that cannot be read is a problem,
// not an error.
func ReadAnswers(ctx context.Context, src Source) (answers []Answer, problems []Problem, err error) {
	entries, err := src.List(ctx)
	if err != nil {
		return nil, nil, err
	}
	entries = slices.DeleteFunc(entries, func(e fs.DirEntry) bool { return !e.Type().IsRegular() })
	return answersAmong(ctx, src, namesOf(entries))
}

func answersAmong(ctx context.Context, src Source, names []string) (answers []Answer, problems []Problem, err error) {
	for _, name := range names {
		if !strings.HasSuffix(name, answerExt) {
			continue
		}
		var a Answer
		b, err := readSmall(ctx, src, name, maxAnswer)
		if err == nil {
			err = json.Unmarshal(b, &a)
		}
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
		if err != nil {
			problems = append(problems, Problem{name, err})
			continue
		}
		answers = append(answers, a)
	}
	return answers, problems, nil
}
