package main

import (
	"fmt"
	"regexp"
	"strings"
	"sync"

	"zodbrepl/internal/fault"
)

type repozoMode byte

const (
	repozoBackup  repozoMode = 'B'
	repozoRecover repozoMode = 'R'
	repozoVerify  repozoMode = 'V'
)

// repozoOptions is a command line of repozo.
type repozoOptions struct {
	mode       repozoMode
	help       bool
	verbose    bool
	repository string
	file       string
	full       bool
	quick      bool
	gzip       bool
	killOld    bool
	date       string  // "" is now
	output     *string // nil is the standard output
	// ignored names the options that the mode has no use for.
	ignored []string
}

// repozoOption is an option as getopt knows it.
type repozoOption struct {
	short byte
	long  string
	arg   bool // it takes a value
}

var repozoAllOptions = []repozoOption{
	{'B', "backup", false}, {'R', "recover", false}, {'V', "verify", false}, {'v', "verbose", false}, {'h', "help", false},
	{'r', "repository", true}, {'f', "file", true}, {'F', "full", false}, {'Q', "quick", false}, {'z', "gzip", false},
	{'k', "kill-old-on-full", false}, {'D', "date", true}, {'o', "output", true}, {'w', "with-verify", false},
}

// getopt reads options as Python's getopt does: short ones may be bundled and carry their value, long ones may be
// shortened as long as they are unambiguous, and the first word that is no option ends them.
func getopt(args []string, each func(o repozoOption, value string) (more bool, err error)) error {
	type found struct {
		option repozoOption
		value  string
	}
	var all []found
	for len(args) > 0 && strings.HasPrefix(args[0], "-") && args[0] != "-" {
		word := args[0]
		args = args[1:]
		if word == "--" {
			break
		}
		takeNext := func(name string) (string, error) {
			if len(args) == 0 {
				return "", repozoUsage("option %s needs a value", name)
			}
			v := args[0]
			args = args[1:]
			return v, nil
		}
		if name, ok := strings.CutPrefix(word, "--"); ok {
			name, value, given := strings.Cut(name, "=")
			o, err := longOption(name)
			switch {
			case err != nil:
				return err
			case !o.arg && given:
				return repozoUsage("option --%s takes no value", o.long)
			case o.arg && !given:
				if value, err = takeNext("--" + o.long); err != nil {
					return err
				}
			}
			all = append(all, found{o, value})
			continue
		}
		for rest := word[1:]; rest != ""; {
			o, ok := shortOption(rest[0])
			if !ok {
				return repozoUsage("option -%s is not known", string([]rune(rest)[0]))
			}
			rest = rest[1:]
			value := ""
			if o.arg {
				value, rest = rest, ""
				var err error
				if value == "" {
					if value, err = takeNext("-" + string(o.short)); err != nil {
						return err
					}
				}
			}
			all = append(all, found{o, value})
		}
	}
	for _, f := range all {
		if more, err := each(f.option, f.value); err != nil || !more {
			return err
		}
	}
	if len(args) > 0 {
		return repozoUsage("arguments that are no options: %s", strings.Join(args, ", "))
	}
	return nil
}

func shortOption(c byte) (repozoOption, bool) {
	for _, o := range repozoAllOptions {
		if o.short == c {
			return o, true
		}
	}
	return repozoOption{}, false
}

func longOption(name string) (repozoOption, error) {
	var fits []repozoOption
	var names []string
	for _, o := range repozoAllOptions {
		if o.long == name {
			return o, nil
		}
		if strings.HasPrefix(o.long, name) {
			fits = append(fits, o)
			names = append(names, "--"+o.long)
		}
	}
	switch len(fits) {
	case 0:
		return repozoOption{}, repozoUsage("option --%s is not known", name)
	case 1:
		return fits[0], nil
	}
	return repozoOption{}, repozoUsage("option --%s may be any of %s", name, strings.Join(names, ", "))
}

func repozoUsage(format string, args ...any) error {
	return fault.New(fault.Usage, format, args...).Keeping("nothing was done").Remedy("repozo --help tells the options")
}

// repozo compares its date with the stamps as a string, so a typing error in it selects just anything. Hence a date is
// held to its form; that the day exists is not asked for: 2024-02-31 is a common way to say the end of a month.
var repozoDate = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^\d{4}(-\d\d){0,5}$`) })

// parseRepozo reads a command line of repozo.
func parseRepozo(args []string) (repozoOptions, error) {
	var o repozoOptions
	var repository, file, date *string
	withVerify := false
	err := getopt(args, func(opt repozoOption, value string) (bool, error) {
		switch opt.short {
		case 'h':
			o.help = true
			return false, nil
		case 'B', 'R', 'V':
			if o.mode != 0 {
				return false, repozoUsage("-B, -R and -V exclude each other")
			}
			o.mode = repozoMode(opt.short)
		case 'v':
			o.verbose = true
		case 'r':
			repository = &value
		case 'f':
			file = &value
		case 'F':
			o.full = true
		case 'Q':
			o.quick = true
		case 'z':
			o.gzip = true
		case 'k':
			o.killOld = true
		case 'D':
			date = &value
		case 'o':
			o.output = &value
		case 'w':
			withVerify = true
		}
		return true, nil
	})
	if err != nil || o.help {
		return o, err
	}
	switch {
	case o.mode == 0:
		return o, repozoUsage("one of --backup, --recover and --verify is required")
	case repository == nil || *repository == "":
		return o, repozoUsage("--repository is required")
	case o.mode == repozoBackup && (file == nil || *file == ""):
		return o, repozoUsage("--file is required to make a backup")
	}
	o.repository = *repository
	if date != nil {
		o.date = *date
	}
	if file != nil {
		o.file = *file
	}
	for _, i := range []struct {
		name  string
		given bool
		modes string // that it is ignored in
	}{
		{"date", date != nil, "BV"}, {"output", o.output != nil, "BV"}, {"with-verify", withVerify, "BV"}, {"file", file != nil, "RV"},
		{"kill-old-on-full", o.killOld, "RV"}, {"full", o.full, "V"}, {"gzip", o.gzip, "V"},
	} {
		if i.given && strings.Contains(i.modes, string(o.mode)) {
			o.ignored = append(o.ignored, fmt.Sprintf("--%s has no meaning together with -%c and is ignored", i.name, o.mode))
		}
	}
	if o.mode != repozoRecover {
		return o, nil
	}
	if o.output != nil && *o.output == "" {
		return o, repozoUsage("--output is empty")
	}
	if o.date != "" && !repozoDate().MatchString(o.date) {
		return o, repozoUsage("date %q is not of the form yyyy-mm-dd[-hh[-mm[-ss]]]", o.date)
	}
	return o, nil
}
