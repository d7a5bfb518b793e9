package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestPrestopUsage(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	for _, tt := range []struct {
		name, node string
		args       []string
		want       string
	}{
		{"no node", "", nil, "NODE_NAME is not set"},
		{"no time", "n1", []string{"--timeout=0s"}, "give more than 0"},
		{"no pod, by variable", "n1", nil, "this is no pod"},
		{"no pod, by flag", "", []string{"--node=n1"}, "this is no pod"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv(nodeNameEnv, tt.node)
			cmd := prestopCommand()
			cmd.SilenceErrors, cmd.SilenceUsage = true, true
			cmd.SetErr(&bytes.Buffer{})
			cmd.SetArgs(tt.args)
			if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}
