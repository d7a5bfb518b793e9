package node

import (
	"fmt"
	"slices"
	"strings"
)

// mkfsOptions says which options of a mkfs a user may give. What is not here
// could name another device, or stop the format from being done.
type mkfsOptions struct {
	flags  []string // stand alone
	values []string // take a value
}

var mkfsAllowed = map[string]mkfsOptions{
	"ext4": {
		flags:  []string{"-v", "-D"},
		values: []string{"-b", "-C", "-E", "-e", "-g", "-G", "-i", "-I", "-J", "-L", "-m", "-N", "-O", "-r", "-T", "-U"},
	},
	"xfs": {
		flags:  []string{"-K"},
		values: []string{"-b", "-d", "-i", "-l", "-L", "-m", "-n", "-s"},
	},
	"btrfs": {
		flags: []string{"-K", "--nodiscard", "-M", "--mixed", "-v", "--verbose"},
		values: []string{"-d", "--data", "-m", "--metadata", "--csum", "--checksum", "-n", "--nodesize", "-s", "--sectorsize",
			"-O", "--features", "-R", "--runtime-features", "-L", "--label", "-U", "--uuid"},
	},
}

// mkfsRefused are suboptions that name another device or a file.
var mkfsRefused = []string{"device=", "logdev=", "rtdev=", "name=", "file"}

// CheckMkfsOptions says whether the options may be used for fsType: each must
// be one that mkfs of that type knows, and none may name a file or device.
func CheckMkfsOptions(fsType, options string) error {
	_, err := parseMkfsOptions(fsType, options)
	return err
}

// parseMkfsOptions gives the options as arguments, each value apart from its
// option. No shell ever sees them.
func parseMkfsOptions(fsType, options string) ([]string, error) {
	allowed, ok := mkfsAllowed[fsType]
	if !ok {
		return nil, unknownFSType(fsType)
	}
	words, err := splitWords(options)
	if err != nil {
		return nil, err
	}
	var args []string
	for i := 0; i < len(words); i++ {
		option, value, joined := cutOption(words[i])
		switch {
		case slices.Contains(allowed.flags, option) && !joined:
			args = append(args, option)
			continue
		case !slices.Contains(allowed.values, option):
			return nil, fmt.Errorf("%w: mkfs option %q of %s; allowed: %s", ErrInvalid, words[i], fsType,
				strings.Join(slices.Concat(allowed.flags, allowed.values), " "))
		}
		if !joined {
			if i++; i == len(words) {
				return nil, fmt.Errorf("%w: mkfs option %s has no value", ErrInvalid, option)
			}
			value = words[i]
		}
		if err := checkMkfsValue(option, value); err != nil {
			return nil, err
		}
		args = append(args, option, value)
	}
	return args, nil
}

// cutOption takes -m0 and --csum=xxhash apart.
func cutOption(word string) (option, value string, joined bool) {
	if strings.HasPrefix(word, "--") {
		return strings.Cut(word, "=")
	}
	if strings.HasPrefix(word, "-") && len(word) > 2 {
		return word[:2], word[2:], true
	}
	return word, "", false
}

func checkMkfsValue(option, value string) error {
	bad := value == "" || strings.HasPrefix(value, "-") || strings.ContainsAny(value, "/\x00\n")
	for sub := range strings.SplitSeq(value, ",") {
		bad = bad || slices.ContainsFunc(mkfsRefused, func(r string) bool { return strings.HasPrefix(strings.TrimSpace(sub), r) })
	}
	if bad {
		return fmt.Errorf("%w: value %q of mkfs option %s", ErrInvalid, value, option)
	}
	return nil
}

// splitWords splits at blanks; single or double quotes keep a word together.
func splitWords(s string) ([]string, error) {
	var words []string
	var word strings.Builder
	var quote rune
	inWord := false
	for _, r := range s {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '"' || r == '\'':
			quote, inWord = r, true
		case r == ' ' || r == '\t' || r == '\n' || r == '\r':
			if inWord {
				words = append(words, word.String())
				word.Reset()
			}
			inWord = false
		default:
			word.WriteRune(r)
			inWord = true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("%w: mkfs options %q: quote without an end", ErrInvalid, s)
	}
	if inWord {
		words = append(words, word.String())
	}
	return words, nil
}
