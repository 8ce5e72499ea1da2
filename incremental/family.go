package incremental

import (
	"zodbrepl/internal/fault"
)

// families returns an example of a stored file for each family of codecs in the repository.
func (r *Repository) families() map[family]string {
	found := make(map[family]string)
	for _, s := range r.sets {
		for _, d := range s.data {
			found[familyOf(d.codec)] = d.name
		}
	}
	return found
}

// Mixes refuses to bring the increments of r to there, when one of the two is of zstd and the other is not.
func (r *Repository) Mixes(there *Repository) error {
	ours, theirs := r.families(), there.families()
	for f, example := range theirs {
		if _, ok := ours[f]; !ok && len(ours) > 0 {
			return fault.New(fault.Usage, "holds %s, and zstd is not mixed with repozo's codecs", example).
				Keeping("nothing was sent there").Remedy("give the increments of another codec a target directory of their own")
		}
	}
	return nil
}

// settleCodec takes the codec that is asked for, or else that of the repository's family, and refuses to mix the two
// families. It writes nothing.
func (b *backup) settleCodec() error {
	found := b.repo.families()
	if len(found) > 1 {
		return fault.New(nil, "repository %s holds increments of zstd (%s) and of repozo's codecs (%s)", b.Repository, found[zstdFamily], found[repozoFamily]).
			Keeping("nothing was written").
			Remedy("a repository is of one of the two: move the files of the other with their manifests and .dat to a directory of their own")
	}
	if _, ok := found[zstdFamily]; ok && b.Codec == "" {
		b.codec = zstdCodec{}
	}
	for there, example := range found {
		if there != familyOf(b.codec) {
			return fault.New(fault.Usage, "codec %s: repository %s holds %s, and zstd is not mixed with repozo's codecs", b.codec.Name(), b.Repository, example).
				Keeping("nothing was written").
				Remedy("leave the codec out to go on with this repository; another codec needs a directory of its own")
		}
	}
	return checkLevel(b.codec, b.Level)
}
