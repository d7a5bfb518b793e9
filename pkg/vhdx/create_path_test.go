package vhdx

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// What stands in for a rename that never replaces, where there is none.
func TestMoveByLink(t *testing.T) {
	dir := t.TempDir()
	tmp, path := filepath.Join(dir, "tmp"), filepath.Join(dir, "path")
	for name, content := range map[string]string{tmp: "new", path: "old"} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := moveByLink(tmp, path); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("onto an existing name: %v", err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "old" {
		t.Fatalf("%q, %v", got, err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := moveByLink(tmp, path); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "new" {
		t.Fatalf("%q, %v", got, err)
	}
	if _, err := os.Lstat(tmp); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("the temporary name: %v", err)
	}
}
