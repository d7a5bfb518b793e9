package main

import (
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// The reference page names every command and every flag.
func TestReferencePage(t *testing.T) {
	page, err := os.ReadFile("../../docs/reference/vhdxctl.md")
	if err != nil {
		t.Fatal(err)
	}
	mentioned := func(word string) {
		if !strings.Contains(string(page), "`"+word) {
			t.Errorf("the reference page lacks `%s`", word)
		}
	}
	root := (&app{}).rootCommand(t.Context())
	root.PersistentFlags().VisitAll(func(f *pflag.Flag) { mentioned("--" + f.Name) })
	for _, cmd := range root.Commands() {
		mentioned(cmd.Use)
		if cmd.Example == "" || cmd.Long == "" {
			t.Errorf("%s has no example or no help", cmd.Name())
		}
		visit(cmd, mentioned)
	}
}

func visit(cmd *cobra.Command, mentioned func(string)) {
	cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) { mentioned("--" + f.Name) })
}
