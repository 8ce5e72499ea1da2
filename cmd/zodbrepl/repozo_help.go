package main

// repozoHelp is what repozo --help prints, and the description of the command in zodbrepl's own help.
const repozoHelp = `Does what ZODB's repozo does, with repozo's options, meaning and exit codes, so that a cron line or a buildout changes
one word. A repository may be used by both in turn. Called through a link with the name repozo, zodbrepl is repozo.

   repozo -B -r DIR -f DATA.FS [-FQzkv]       make a backup: what is new, or everything when that cannot be
   repozo -R -r DIR [-o FILE] [-D DATE] [-wv] recover
   repozo -V -r DIR [-Qv]                     verify

   -B, --backup            make a backup of a Data.fs, also while a server writes to it
   -R, --recover           make a Data.fs of the backups
   -V, --verify            check the backups
   -r, --repository DIR    where the backups are; the directory must exist
   -v, --verbose           tell on standard error what is done
   -h, --help              print this and end
 with -B:
   -f, --file DATA.FS      the file to back up
   -F, --full              make a full
   -Q, --quick             look only at the end of what is backed up before adding to it. Without it, all of Data.fs is
                           compared, and what is stored of the newest chain is read
   -z, --gzip              compress; without it, the bytes are stored as they are
   -k, --kill-old-on-full  after a full, remove all that is older, once the full is safely on disk
 with -R:
   -D, --date DATE         yyyy-mm-dd[-hh[-mm[-ss]]] in UTC: take the backups with a name up to DATE, compared as text,
                           so that 2024-01-01 excludes that day. By default the newest. For a moment between two
                           backups use: zodbrepl recover --at
   -o, --output FILE       by default the standard output
   -w, --with-verify       is always on
 with -V:
   -Q, --quick             check what is stored by size and SHA-256, without unpacking it

An option may be shortened as long as it is unambiguous, and one-letter options may be bundled: repozo -BzQr DIR -f DATA.FS

What differs from ZODB's repozo is on the safe side:
 - A backup fails when another one is at work in the repository, when Data.fs is a standby's or of another database
   than the repository, when its structure is damaged, or when another host was promoted.
 - A full that was not asked for is told on standard error: Data.fs was packed, or a stored backup is damaged.
 - Beside each backup a manifest is written and no index. The newest chain of ZODB's repozo is read once to give it
   manifests, with -Q too.
 - -R verifies all that it reads. FILE gets its name, and FILE.index, when all is good; until then an old FILE stays, so
   there must be room for both. An old FILE that is the beginning of what is wanted is appended to. A FILE that a server
   has open, that is a standby's, or that is a link is refused. What the .dat does not list is not used.
 - A DATE of another form is refused. Without -D the newest backup is taken, although its name may lie in the future
   because a clock was wrong.
 - -V checks all chains, and that nothing is missing between the backups.`

const repozoExample = "zodbrepl repozo -BzQ -r /var/backups/zodb -f /srv/zeo/Data.fs"

const repozoExits = `Exit codes:
    0  done
    1  anything else, and also a wrong command line; the message is on standard error`
