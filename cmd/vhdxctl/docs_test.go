package main

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "write the reference page anew")

const referencePage = "../../docs/reference/vhdxctl.md"

// The reference page is what the commands say of themselves.
func TestReferencePage(t *testing.T) {
	want := reference((&app{}).rootCommand(t.Context()))
	if *update {
		if err := os.WriteFile(referencePage, []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(referencePage)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("run go test ./cmd/vhdxctl -run TestReferencePage -update (-commands +page):\n%s", diff)
	}
}

// Every command, and every command under it, has help and an example.
func TestHelp(t *testing.T) {
	each((&app{}).rootCommand(t.Context()), func(cmd *cobra.Command) {
		if cmd.HasParent() && cmd.Example == "" || cmd.Long == "" || cmd.Short == "" {
			t.Errorf("%s has no example or no help", cmd.CommandPath())
		}
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" && !f.Hidden {
				t.Errorf("%s --%s says nothing of itself", cmd.CommandPath(), f.Name)
			}
		})
	})
}

func each(cmd *cobra.Command, visit func(*cobra.Command)) {
	visit(cmd)
	for _, c := range cmd.Commands() {
		each(c, visit)
	}
}

func reference(root *cobra.Command) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# vhdxctl\n\n<!-- Made from the commands themselves: go test ./cmd/vhdxctl -run TestReferencePage -update -->\n\n%s\n", prose(root.Long))
	fmt.Fprint(&b, "\n| Command | |\n|---|---|\n")
	commands := slices.Clone(root.Commands())
	for _, cmd := range commands {
		fmt.Fprintf(&b, "| [`%s`](#%s) | %s |\n", cmd.Name(), cmd.Name(), cmd.Short)
	}
	fmt.Fprint(&b, "\nOptions of every command:\n\n")
	writeFlags(&b, root.PersistentFlags())
	for _, cmd := range commands {
		writeCommand(&b, cmd, "##")
	}
	return b.String()
}

func writeCommand(b *strings.Builder, cmd *cobra.Command, level string) {
	name := strings.TrimPrefix(cmd.CommandPath(), "vhdxctl ")
	fmt.Fprintf(b, "\n%s %s\n\n    %s\n\n%s\n", level, name, cmd.UseLine(), prose(cmd.Long))
	if cmd.LocalNonPersistentFlags().HasAvailableFlags() {
		fmt.Fprintln(b)
		writeFlags(b, cmd.LocalNonPersistentFlags())
	}
	if cmd.Example != "" {
		fmt.Fprintln(b)
		for line := range strings.SplitSeq(cmd.Example, "\n") {
			fmt.Fprintf(b, "    %s\n", strings.TrimPrefix(line, "  "))
		}
	}
	for _, c := range cmd.Commands() {
		writeCommand(b, c, level+"#")
	}
}

// prose keeps help readable as Markdown: its lines that begin with spaces are
// commands.
func prose(s string) string {
	var lines []string
	for line := range strings.SplitSeq(s, "\n") {
		if strings.HasPrefix(line, "  ") {
			line = "  " + line
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

func writeFlags(b *strings.Builder, flags *pflag.FlagSet) {
	fmt.Fprint(b, "| Option | |\n|---|---|\n")
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		kind, usage := pflag.UnquoteUsage(f)
		names := "--" + f.Name
		if f.Shorthand != "" {
			names = "-" + f.Shorthand + ", " + names
		}
		if kind != "" {
			names += " " + strings.ToUpper(kind)
		}
		fmt.Fprintf(b, "| `%s` | %s |\n", names, strings.ReplaceAll(usage, "|", "\\|"))
	})
}
