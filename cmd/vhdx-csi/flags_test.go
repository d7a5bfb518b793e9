package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

var update = flag.Bool("update", false, "rewrite the table of flags in docs/reference/vhdx-csi.md")

const page = "../../docs/reference/vhdx-csi.md"

// TestFlagsDocumented: the reference page has exactly the flags there are.
func TestFlagsDocumented(t *testing.T) {
	const begin, end = "<!-- flags: written by go test ./cmd/vhdx-csi -update -->\n", "<!-- end of flags -->\n"
	b, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(b), begin)
	table, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s lacks the marks around the table", page)
	}
	want := flagTable()
	if *update {
		if err := os.WriteFile(page, []byte(head+begin+want+end+tail), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if d := cmp.Diff(want, table); d != "" {
		t.Fatalf("run go test ./cmd/vhdx-csi -update (-want +page)\n%s", d)
	}
	for _, example := range strings.Split(examples, "\n\n") {
		if !strings.Contains(string(b), strings.ReplaceAll(strings.TrimSpace(example), "\n  ", "\n")) {
			t.Errorf("%s lacks the example of --help:\n%s", page, example)
		}
	}
}

func flagTable() string {
	var b strings.Builder
	b.WriteString("| Flag | Default | Meaning |\n|---|---|---|\n")
	cmd := command(nil)
	cmd.InitDefaultHelpFlag()
	cmd.InitDefaultVersionFlag()
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		def := ""
		if f.DefValue != "" && f.DefValue != "[]" {
			def = "`" + f.DefValue + "`"
		}
		name := "--" + f.Name
		if len(f.Name) == 1 {
			name = "-" + f.Name
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", name, def, strings.ReplaceAll(f.Usage, "|", "\\|"))
	})
	return b.String()
}

func TestUsage(t *testing.T) {
	state := t.TempDir()
	for _, tt := range []struct {
		name string
		args []string
		want string // part of the message; "": it starts
	}{
		{"nothing", nil, ""},
		{"node", []string{"--mode=node", "--pool=a=/x"}, ""},
		{"unknown flag", []string{"--pol=x"}, "unknown flag"},
		{"argument", []string{"serve"}, "unknown command"},
		{"mode", []string{"--mode=keeper"}, "there is controller, node and all"},
		{"no pool", []string{"--mode=controller"}, "needs at least one --pool"},
		{"relative state", []string{"--state-dir=x"}, "absolute"},
		{"volumes", []string{"--max-volumes=-1"}, "0 or more"},
		{"timeout", []string{"--work-timeout=0s"}, "more than 0"},
		{"metrics", []string{"--metrics-address=9809"}, "give host:port"},
		{"traces", []string{"--otlp-endpoint=collector:4317"}, "give http://host:port"},
		{"control", []string{"--control-address=9811"}, "give host:port"},
		{"advertised", []string{"--control-advertise=node-1"}, "give an IP address"},
		{"controlled", []string{"--control-address=:9811", "--control-advertise=10.1.2.3"}, ""},
		{"events", []string{"--events=maybe"}, "auto, on and off"},
		{"observed", []string{"--metrics-address=:9809", "--otlp-endpoint=https://c:4317", "--events=off"}, ""},
		{"hang", []string{"--hang-timeout=10ms"}, "busy machine"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			started := false
			cmd := command(func(*cobra.Command, *options) error { started = true; return nil })
			var out bytes.Buffer
			cmd.SetErr(&out)
			cmd.SetOut(&out)
			cmd.SetArgs(append([]string{"--state-dir=" + state}, tt.args...))
			err := cmd.Execute()
			if started != (tt.want == "") || started != (err == nil) {
				t.Fatalf("started %v, err %v", started, err)
			}
			if err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %q, %v; want %q", out.String(), err, tt.want)
			}
		})
	}
}

func TestHelp(t *testing.T) {
	cmd := command(nil)
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetArgs([]string{"--help"})
	if err := cmd.Execute(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Examples:", "--mode=node", "--shutdown-timeout", "-v, --v"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("--help lacks %q:\n%s", want, out.String())
		}
	}
}

func TestParsePool(t *testing.T) {
	got, err := parsePool("fast=/srv/x/,local,overcommit=2.5,reserve=10Gi,allow-unsafe")
	want := poolSpec{Options: pool.Options{Name: "fast", Dir: "/srv/x", Overcommit: 2.5, Reserve: 10 << 30, AllowUnsafe: true}, local: true}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(poolSpec{})); d != "" || err != nil {
		t.Fatalf("%v (-want +got)\n%s", err, d)
	}
	for _, bad := range []string{"", "x", "=/x", "x=", "x=rel", "x=/y,", "x=/y,loca", "x=/y,local=1", "x=/y,overcommit", "x=/y,overcommit=0",
		"x=/y,overcommit=NaN", "x=/y,reserve=lots"} {
		if got, err := parsePool(bad); err == nil && bad != "x=/y," {
			t.Errorf("parsePool(%q) = %+v", bad, got)
		}
	}
}

func TestDefaultPool(t *testing.T) {
	o := &options{mode: modeAll, stateDir: t.TempDir()}
	got, err := o.poolSpecs()
	want := []poolSpec{{Options: pool.Options{Name: "default", Dir: filepath.Join(o.stateDir, "pool")}, local: true}}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(poolSpec{})); d != "" || err != nil {
		t.Fatalf("%v (-want +got)\n%s", err, d)
	}
}

func TestAutoLimit(t *testing.T) {
	file := filepath.Join(t.TempDir(), "memory.max")
	for text, want := range map[string]int64{"1073741824\n": 1073741824 / 10 * 9, "1\n": memoryLeast} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := autoLimit(file); err != nil || got != want {
			t.Errorf("%q: %d, %v, want %d", text, got, err, want)
		}
	}
	if err := os.WriteFile(file, []byte("max\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	unlimited, err := autoLimit(file)
	none, err2 := autoLimit(file + ".no")
	if errors.Join(err, err2) != nil || unlimited != none || unlimited < memoryLeast {
		t.Errorf("no limit: %d, %v; no cgroup: %d, %v", unlimited, err, none, err2)
	}
}
