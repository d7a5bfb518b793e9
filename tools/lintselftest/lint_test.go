// Package lintselftest proves that the import rules of .golangci.yml fire: a
// rule whose file pattern matches nothing looks exactly like a rule kept.
package lintselftest

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/csi-vhdx/csi-driver-vhdx"

// Where a violation of each rule is planted. A rule of .golangci.yml that is
// missing here fails the test.
var places = map[string]string{
	"backend":    "pkg/blockdev/fuseloop",
	"blockdev":   "pkg/blockdev",
	"cli":        "cmd/vhdxctl",
	"clientgo":   "pkg/events",
	"control":    "pkg/control/wire",
	"csi":        "pkg/node",
	"driver":     "pkg/driver",
	"drain":      "pkg/driver",
	"internal":   "internal/uring",
	"keeper":     "pkg/keeper",
	"klog":       "pkg/vhdx",
	"lease":      "pkg/pool/lease",
	"node":       "pkg/node",
	"observers":  "pkg/node",
	"ondisk":     "pkg/vhdx/internal/ondisk",
	"pool":       "pkg/pool",
	"prometheus": "pkg/driver",
	"telemetry":  "pkg/driver",
	"testing":    "pkg/pool",
	"testkits":   "pkg/pool",
	"tools":      "tools/testrun",
	"vhdx":       "pkg/vhdx",
}

// Imports that architecture and rules allow, by importing directory.
var allowed = map[string][]string{
	"cmd/vhdx-csi":             {module + "/internal/drain", module + "/pkg/driver", module + "/pkg/node", module + "/pkg/blockdev/fuseloop", module + "/pkg/metrics", module + "/pkg/events", "google.golang.org/grpc", "go.opentelemetry.io/otel", "k8s.io/klog/v2"},
	"pkg/events":               {module + "/pkg/node", module + "/pkg/pool", module + "/internal/kubeapi"},
	"pkg/metrics":              {module + "/pkg/node", module + "/pkg/pool", module + "/pkg/blockdev", "github.com/prometheus/client_golang/prometheus"},
	"cmd/vhdxctl":              {module + "/pkg/vhdx", module + "/pkg/pool", module + "/pkg/blockdev/fuseloop"},
	"pkg/driver":               {module + "/pkg/node", module + "/pkg/pool", module + "/pkg/control", module + "/pkg/control/wire", "github.com/container-storage-interface/spec/lib/go/csi", "google.golang.org/grpc", "k8s.io/klog/v2"},
	"pkg/control/wire":         {module + "/pkg/control", module + "/pkg/pool", "google.golang.org/grpc"},
	"pkg/node":                 {module + "/pkg/pool", module + "/pkg/control", module + "/pkg/vhdx", module + "/pkg/blockdev", "k8s.io/mount-utils", "k8s.io/klog/v2"},
	"pkg/pool":                 {module + "/pkg/pool/lease", module + "/pkg/vhdx", module + "/internal/fsx", "k8s.io/klog/v2"},
	"pkg/pool/lease":           {module + "/pkg/vhdx", module + "/internal/fsx"},
	"pkg/blockdev/fuseloop":    {module + "/pkg/blockdev", module + "/internal/uring", "golang.org/x/sys/unix"},
	"pkg/vhdx":                 {module + "/pkg/vhdx/internal/ondisk", "github.com/google/uuid", "golang.org/x/sys/unix", "os"},
	"pkg/vhdx/internal/ondisk": {"github.com/google/uuid", "encoding/binary"},
}

type rule struct {
	name   string
	strict bool
	deny   []denied
}

type denied struct{ pkg, desc string }

// rules reads the depguard rules out of the configuration's text.
func rules(t *testing.T, config []byte) []rule {
	t.Helper()
	from := bytes.Index(config, []byte("\n    depguard:\n      rules:\n"))
	if from < 0 {
		t.Fatal("no depguard rules in .golangci.yml")
	}
	text := string(config[from+len("\n    depguard:\n      rules:\n"):])
	if end := regexp.MustCompile(`(?m)^    \w`).FindStringIndex(text); end != nil {
		text = text[:end[0]]
	}
	heads := regexp.MustCompile(`(?m)^        (\w+):$`).FindAllStringSubmatchIndex(text, -1)
	pairs := regexp.MustCompile(`- pkg: (\S+)\n\s+desc: "(.*)"`)
	var all []rule
	for i, h := range heads {
		end := len(text)
		if i+1 < len(heads) {
			end = heads[i+1][0]
		}
		r := rule{name: text[h[2]:h[3]], strict: strings.Contains(text[h[0]:end], "list-mode: strict")}
		for _, m := range pairs.FindAllStringSubmatch(text[h[0]:end], -1) {
			r.deny = append(r.deny, denied{m[1], m[2]})
		}
		all = append(all, r)
	}
	return all
}

func TestEachImportRuleFires(t *testing.T) {
	linter, config := setup(t)
	all := rules(t, config)
	if len(all) < 10 {
		t.Fatalf("read only %d rules", len(all))
	}
	for _, r := range all {
		t.Run(r.name, func(t *testing.T) {
			dir, ok := places[r.name]
			if !ok {
				t.Fatalf("places does not say where to plant a violation of rule %q", r.name)
			}
			tree := newTree(t, config)
			want := map[string]string{} // planted file: text the linter must print for it
			for i, d := range r.deny {
				if !strings.HasPrefix(d.desc, r.name+": ") {
					t.Errorf("the reason of %s does not begin with the rule's name: %q", d.pkg, d.desc)
				}
				want[tree.plant(dir, fmt.Sprintf("plant%d.go", i), target(d.pkg))] = d.desc
			}
			if r.strict {
				want[tree.plant(dir, "unlisted.go", "example.org/unlisted")] = "from list '" + r.name + "'"
			}
			got := tree.lint(linter)
			for file, text := range want {
				if !slices.ContainsFunc(got[file], func(s string) bool { return strings.Contains(s, text) }) {
					t.Errorf("%s: the linter did not say %q, only %q", file, text, got[file])
				}
			}
		})
	}
}

func TestAllowedImportsPass(t *testing.T) {
	linter, config := setup(t)
	tree := newTree(t, config)
	for _, dir := range slices.Sorted(maps.Keys(allowed)) {
		for i, pkg := range allowed[dir] {
			tree.plant(dir, fmt.Sprintf("plant%d.go", i), pkg)
		}
	}
	for file, texts := range tree.lint(linter) {
		t.Errorf("%s: %s", file, texts)
	}
}

func setup(t *testing.T) (linter string, config []byte) {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	linter = filepath.Join(root, "bin/tools/golangci-lint")
	if _, err := os.Stat(linter); err != nil {
		t.Skipf("the linter is not built; `make lint` builds it: %v", err)
	}
	config, err = os.ReadFile(filepath.Join(root, ".golangci.yml"))
	if err != nil {
		t.Fatal(err)
	}
	return linter, config
}

// target is a package that a deny entry covers.
func target(pkg string) string {
	if exact, ok := strings.CutSuffix(pkg, "$"); ok {
		return exact
	}
	if strings.HasSuffix(pkg, "/") {
		return pkg + "plant"
	}
	return pkg
}

// tree is a module of stubs: the real packages need not exist or compile.
type tree struct {
	t       *testing.T
	dir     string
	modules []string
}

func newTree(t *testing.T, config []byte) *tree {
	tr := &tree{t: t, dir: t.TempDir()}
	tr.write(".golangci.yml", string(config))
	return tr
}

func (tr *tree) write(file, text string) {
	tr.t.Helper()
	file = filepath.Join(tr.dir, file)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		tr.t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		tr.t.Fatal(err)
	}
}

// plant writes a file of dir that imports pkg, and a stub of pkg.
func (tr *tree) plant(dir, file, pkg string) string {
	file = filepath.Join(dir, file)
	tr.write(file, fmt.Sprintf("package %s\n\nimport _ %q\n", packageName(dir), pkg))
	if own, ok := strings.CutPrefix(pkg, module+"/"); ok {
		tr.write(own+"/stub.go", "package "+packageName(own)+"\n")
		return file
	}
	if strings.Contains(strings.Split(pkg, "/")[0], ".") && !slices.Contains(tr.modules, pkg) {
		tr.modules = append(tr.modules, pkg)
		tr.write("stubs/"+pkg+"/go.mod", "module "+pkg+"\n\ngo 1.26.0\n")
		tr.write("stubs/"+pkg+"/stub.go", "package stub\n")
	}
	return file
}

// packageName is the last element of dir that a package clause can hold.
func packageName(dir string) string {
	return strings.Map(func(r rune) rune {
		if r < 'a' || r > 'z' {
			return -1
		}
		return r
	}, filepath.Base(dir))
}

// lint runs depguard alone and returns what it says, by file.
func (tr *tree) lint(linter string) map[string][]string {
	tr.t.Helper()
	mod := "module " + module + "\n\ngo 1.26.0\n"
	for _, m := range tr.modules {
		mod += fmt.Sprintf("require %s %s\nreplace %s => ./stubs/%s\n", m, stubVersion(m), m, m)
	}
	tr.write("go.mod", mod)
	tr.write("stub.go", "package stub\n")
	cmd := exec.Command(linter, "run", "--enable-only", "depguard",
		"--uniq-by-line=false", "--max-issues-per-linter", "0", "--max-same-issues", "0",
		"--output.text.path", "stdout", "--output.text.print-issued-lines=false", "--output.text.colors=false", "./...")
	cmd.Dir = tr.dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok || exit.ExitCode() != 1) { // 1: issues found
		tr.t.Fatalf("golangci-lint: %v\n%s%s", err, out, stderr.Bytes())
	}
	got := map[string][]string{}
	for line := range strings.Lines(string(out)) {
		if !strings.Contains(line, "(depguard)") {
			if strings.Contains(line, "(typecheck)") {
				tr.t.Fatalf("the planted module does not compile:\n%s", out)
			}
			continue
		}
		file, text, _ := strings.Cut(strings.TrimSpace(line), ":")
		got[file] = append(got[file], text)
	}
	return got
}

func stubVersion(m string) string {
	if strings.HasSuffix(m, "/v2") {
		return "v2.0.0"
	}
	return "v0.0.0"
}
