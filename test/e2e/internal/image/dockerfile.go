package image

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
)

// Recipe is the last stage of a Dockerfile, as far as the driver's uses the
// language. An instruction that this package does not know is an error, so
// that the image of the tests cannot silently differ from the one `make image`
// builds.
type Recipe struct {
	Suite      string   // Debian's, of the base image
	Run        []string // shell commands, in order
	Copies     []Copy
	Labels     map[string]string
	User       string
	Entrypoint []string
}

// Copy is one file of a COPY.
type Copy struct {
	Built bool // out of the build stage; otherwise out of the source tree
	From  string
	To    string
}

var (
	continued = regexp.MustCompile(`\\\n\s*`)
	baseImage = regexp.MustCompile(`^docker\.io/library/debian:([a-z]+)-slim$`)
	argument  = regexp.MustCompile(`^([A-Z]+)(=.*)?$`)
	label     = regexp.MustCompile(`([a-z.]+)="([^"]*)"`)
)

// ReadDockerfile reads the last stage. args are what --build-arg would give.
func ReadDockerfile(path string, args map[string]string) (*Recipe, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := &Recipe{Labels: map[string]string{}}
	known := map[string]string{}
	for line := range strings.SplitSeq(continued.ReplaceAllString(string(content), " "), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		word, rest, _ := strings.Cut(line, " ")
		if word == "FROM" {
			*r = Recipe{Labels: map[string]string{}}
			known = map[string]string{}
			if m := baseImage.FindStringSubmatch(rest); m != nil {
				r.Suite = m[1]
			}
			continue
		}
		if r.Suite == "" {
			continue // an earlier stage
		}
		if err := r.add(word, rest, known, args); err != nil {
			return nil, fmt.Errorf("%s: %s: %w", path, line, err)
		}
	}
	if r.Suite == "" {
		return nil, fmt.Errorf("%s: the last stage is not FROM docker.io/library/debian:SUITE-slim", path)
	}
	return r, nil
}

func (r *Recipe) add(word, rest string, known, args map[string]string) error {
	switch word {
	case "RUN":
		r.Run = append(r.Run, rest)
	case "COPY":
		return r.copy(strings.Fields(rest))
	case "ARG":
		m := argument.FindStringSubmatch(rest)
		if m == nil {
			return fmt.Errorf("not understood")
		}
		known[m[1]] = strings.TrimPrefix(m[2], "=")
		if v, ok := args[m[1]]; ok {
			known[m[1]] = v
		}
	case "LABEL":
		for _, m := range label.FindAllStringSubmatch(rest, -1) {
			r.Labels[m[1]] = os.Expand(m[2], func(name string) string { return known[name] })
		}
	case "USER":
		r.User = rest
	case "ENTRYPOINT":
		return json.Unmarshal([]byte(rest), &r.Entrypoint)
	default:
		return fmt.Errorf("the end-to-end tests do not know this instruction; teach internal/image")
	}
	return nil
}

func (r *Recipe) copy(words []string) error {
	built := false
	if len(words) > 0 && strings.HasPrefix(words[0], "--") {
		if built = words[0] == "--from=build"; !built {
			return fmt.Errorf("flag %s is not known", words[0])
		}
		words = words[1:]
	}
	if len(words) < 2 {
		return fmt.Errorf("wants a source and a destination")
	}
	to := words[len(words)-1]
	for _, from := range words[:len(words)-1] {
		c := Copy{Built: built, From: from, To: to}
		if strings.HasSuffix(to, "/") {
			c.To += from[strings.LastIndexByte(from, '/')+1:]
		}
		r.Copies = append(r.Copies, c)
	}
	return nil
}
