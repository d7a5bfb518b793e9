// Command manifests renders deploy/kubernetes from the chart in deploy/helm, and
// the table of its values in docs/reference/chart.md. `make manifests` runs it,
// and the tests beside it compare what it would write with what is there.
//
// It needs no helm and no kustomize on the machine: their own libraries do it.
package main

import (
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
)

// root of the repository; the program and its tests run in their own directory.
const root = "../.."

// rendered are the directories that hold nothing but what is rendered: base,
// what is made of it, and what may be added to either.
var rendered = []string{"deploy/kubernetes/base", "deploy/kubernetes/overlays", "deploy/kubernetes/components"}

func main() {
	// Helm's loader notes, each time, that the chart has a link in it.
	slog.SetDefault(slog.New(slog.DiscardHandler))
	if err := write(); err != nil {
		fmt.Fprintln(os.Stderr, "manifests:", err)
		os.Exit(1)
	}
}

func write() error {
	files, err := tree()
	if err != nil {
		return err
	}
	for _, dir := range rendered {
		if err := os.RemoveAll(filepath.Join(root, dir)); err != nil {
			return err
		}
	}
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// present reads what there is where tree would write: all of the rendered
// directories, and the reference page.
func present() (map[string]string, error) {
	files := map[string]string{}
	read := func(path string) error {
		content, err := os.ReadFile(path)
		files[strings.TrimPrefix(path, root+"/")] = string(content)
		return err
	}
	for _, dir := range rendered {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			return read(path)
		})
		if err != nil {
			return nil, err
		}
	}
	return files, read(filepath.Join(root, referencePage))
}
