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

// A draft has no name until it is published; closed before, it leaves nothing.
// Both kinds: without a name, and with a temporary one.
func TestDraft(t *testing.T) {
	for _, kind := range []string{"unnamed", "temporary name"} {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "path")
			begin := func(content string) *Draft {
				d, err := NewDraft(path)
				if err != nil {
					t.Fatal(err)
				}
				if kind == "temporary name" {
					if err := d.Close(); err != nil {
						t.Fatal(err)
					}
					f, err := os.CreateTemp(dir, ".vhdx-create-*")
					if err != nil {
						t.Fatal(err)
					}
					d = &Draft{path: path, tmp: f.Name(), f: f}
				}
				if _, err := d.File().WriteString(content); err != nil {
					t.Fatal(err)
				}
				return d
			}
			end := func(d *Draft, want ...string) {
				t.Helper()
				if err := d.Close(); err != nil {
					t.Fatal(err)
				}
				entries, err := os.ReadDir(dir)
				if err != nil || len(entries) != len(want) {
					t.Fatalf("in the directory: %v, %v; want %v", entries, err, want)
				}
				for _, content := range want {
					if got, err := os.ReadFile(path); err != nil || string(got) != content {
						t.Fatalf("%q, %v; want %q", got, err, content)
					}
				}
			}
			d := begin("never")
			if entries, err := os.ReadDir(dir); err != nil || d.tmp == "" && len(entries) != 0 {
				t.Fatalf("a kill would leave %v, %v", entries, err)
			}
			end(d)
			d = begin("one")
			if err := d.Publish(false); err != nil {
				t.Fatal(err)
			}
			end(d, "one")
			d = begin("two")
			if err := d.Publish(false); !errors.Is(err, fs.ErrExist) {
				t.Fatalf("onto an existing name: %v", err)
			}
			end(d, "one")
			d = begin("two")
			if err := d.Publish(true); err != nil {
				t.Fatal(err)
			}
			end(d, "two")
		})
	}
}
