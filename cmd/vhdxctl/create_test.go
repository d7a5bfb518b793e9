package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// Ctrl-C while a fixed image gets its space leaves nothing.
func TestCreateInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := t.TempDir()
	var out, errOut bytes.Buffer
	a := &app{out: &out, errOut: &errOut}
	err := a.create(ctx, filepath.Join(dir, "disk"), vhdx.CreateOptions{Size: 64 << 20, Fixed: true}, false)
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Fatalf("left behind: %v, %v", entries, err)
	}
	if a.fail(err); !strings.Contains(errOut.String(), "Nothing was left behind") || out.Len() != 0 {
		t.Fatalf("said %q and %q", &out, &errOut)
	}
}
