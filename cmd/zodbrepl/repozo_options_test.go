package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/internal/fault"
)

func TestRepozoOptions(t *testing.T) {
	out := func(s string) *string { return &s }
	for name, test := range map[string]struct {
		args string
		want repozoOptions
	}{
		"short ones apart": {"-B -r repo -f Data.fs", repozoOptions{mode: repozoBackup, repository: "repo", file: "Data.fs"}},
		"a cron line, bundled": {"-BzQ -r repo -f Data.fs", repozoOptions{mode: repozoBackup, repository: "repo", file: "Data.fs",
			gzip: true, quick: true}},
		"a bundle that ends with a value":         {"-Rr repo", repozoOptions{mode: repozoRecover, repository: "repo"}},
		"a value in the word":                     {"-Rrrepo -oout", repozoOptions{mode: repozoRecover, repository: "repo", output: out("out")}},
		"a value that looks like an option":       {"-V -r -Q", repozoOptions{mode: repozoVerify, repository: "-Q"}},
		"a long value in the word":                {"--recover --repository=repo --output=a=b", repozoOptions{mode: repozoRecover, repository: "repo", output: out("a=b")}},
		"a long value in the next word":           {"--verify --repository repo --quick", repozoOptions{mode: repozoVerify, repository: "repo", quick: true}},
		"shortened long ones":                     {"--b --rep repo --fi=Data.fs --fu --q --g --k", repozoOptions{mode: repozoBackup, repository: "repo", file: "Data.fs", full: true, quick: true, gzip: true, killOld: true}},
		"all of recover":                          {"-R -r repo -D 2024-01-31 -o out -w -v", repozoOptions{mode: repozoRecover, repository: "repo", date: "2024-01-31", output: out("out"), verbose: true}},
		"the last of two values":                  {"-R -r a -r b", repozoOptions{mode: repozoRecover, repository: "b"}},
		"the end of options":                      {"-R -r repo --", repozoOptions{mode: repozoRecover, repository: "repo"}},
		"no date is now":                          {"-R -r repo -D ", repozoOptions{mode: repozoRecover, repository: "repo"}},
		"a year":                                  {"-R -r repo -D 2030", repozoOptions{mode: repozoRecover, repository: "repo", date: "2030"}},
		"a day that is none still orders":         {"-R -r repo -D 2024-02-31", repozoOptions{mode: repozoRecover, repository: "repo", date: "2024-02-31"}},
		"help before what is wrong":               {"-h -B -R what", repozoOptions{help: true}},
		"help after what is not missing yet":      {"-B --help", repozoOptions{mode: repozoBackup, help: true}},
		"a date that does not matter in a backup": {"-B -r repo -f Data.fs -D never -o out -w", repozoOptions{mode: repozoBackup, repository: "repo", file: "Data.fs", date: "never", output: out("out"), ignored: []string{"--date has no meaning together with -B and is ignored", "--output has no meaning together with -B and is ignored", "--with-verify has no meaning together with -B and is ignored"}}},
		"what does not matter in a recovery":      {"-R -r repo -f Data.fs -kFzQ", repozoOptions{mode: repozoRecover, repository: "repo", file: "Data.fs", killOld: true, full: true, gzip: true, quick: true, ignored: []string{"--file has no meaning together with -R and is ignored", "--kill-old-on-full has no meaning together with -R and is ignored"}}},
		"what does not matter in a verification":  {"-V -r repo -Fz", repozoOptions{mode: repozoVerify, repository: "repo", full: true, gzip: true, ignored: []string{"--full has no meaning together with -V and is ignored", "--gzip has no meaning together with -V and is ignored"}}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseRepozo(strings.Split(test.args, " "))
			require.NoError(t, err)
			require.Equal(t, test.want, got)
		})
	}
}

func TestRepozoRefusesOptions(t *testing.T) {
	for name, test := range map[string]struct{ args, says string }{
		"none at all":                       {"", "one of --backup, --recover and --verify is required"},
		"no mode":                           {"-r repo", "one of --backup, --recover and --verify is required"},
		"two modes":                         {"-BR -r repo -f Data.fs", "-B, -R and -V exclude each other"},
		"one mode twice":                    {"-B -B -r repo -f Data.fs", "-B, -R and -V exclude each other"},
		"no repository":                     {"-R", "--repository is required"},
		"an empty repository":               {"-V --repository=", "--repository is required"},
		"no file":                           {"-B -r repo", "--file is required to make a backup"},
		"an empty file":                     {"-B -r repo --file=", "--file is required to make a backup"},
		"an empty output":                   {"-R -r repo --output=", "--output is empty"},
		"an unknown short one":              {"-Bx", "option -x is not known"},
		"an unknown short one in UTF-8":     {"-Bü", "option -ü is not known"},
		"an unknown long one":               {"--backups", "option --backups is not known"},
		"an ambiguous long one":             {"--ver", "option --ver may be any of --verify, --verbose"},
		"an ambiguous long one with values": {"--f=Data.fs", "option --f may be any of --file, --full"},
		"only dashes and a sign":            {"--=x", "may be any of"},
		"a value that is not there":         {"-B -r", "option -r needs a value"},
		"a long value that is not there":    {"-B --file", "option --file needs a value"},
		"a value that is not wanted":        {"-B --full=", "option --full takes no value"},
		"an argument":                       {"-B -r repo -f Data.fs extra more", "arguments that are no options: extra, more"},
		"options after an argument":         {"-B extra -r repo", "arguments that are no options: extra, -r, repo"},
		"a lone dash":                       {"-R -r repo -", "arguments that are no options: -"},
		"a word for a date":                 {"-R -r repo -D yesterday", `date "yesterday" is not of the form`},
		"a date without zeros":              {"-R -r repo -D 2024-3-2", `date "2024-3-2" is not of the form`},
		"a date that is cut":                {"-R -r repo -D 2024-03-02-", `date "2024-03-02-" is not of the form`},
		"a date with a time as elsewhere":   {"-R -r repo -D 2024-03-02T10:00:00", "is not of the form"},
		"a date of seven parts":             {"-R -r repo -D 2024-03-02-10-00-00-00", "is not of the form"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseRepozo(strings.Fields(test.args))
			require.ErrorIs(t, err, fault.Usage)
			require.ErrorContains(t, err, test.says)
			require.NotEmpty(t, fault.Next(err))
		})
	}
}
