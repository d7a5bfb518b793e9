package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
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

// A log that nobody reads holds nothing up, and is no error.
func TestAside(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(pipe, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	f, err := os.OpenFile(pipe, os.O_WRONLY|os.O_APPEND|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for range 3 {
		line := make([]byte, 1<<17) // a pipe holds half of it
		if n, err := (aside{f}).Write(line); n != len(line) || err != nil {
			t.Fatalf("%d, %v", n, err)
		}
	}
}
