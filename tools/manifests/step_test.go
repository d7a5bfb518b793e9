package main

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestRenderedInStep: what is committed is what the chart gives now.
func TestRenderedInStep(t *testing.T) {
	want, err := tree()
	if err != nil {
		t.Fatal(err)
	}
	got, err := present()
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("run make manifests (-rendered +committed):\n%s", d)
	}
}

// TestOverlaysAreTheChart: kustomize makes of each overlay the same objects as
// helm of the example's values.
func TestOverlaysAreTheChart(t *testing.T) {
	for _, name := range append(overlays, "") {
		given, dir := values{}, "base"
		if name != "" {
			given, dir = exampleValues(t, name), "overlays/"+name
		}
		maps.Copy(given, forBase())
		want, err := objects(map[string]string{"chart": string(charted(t, given))})
		if err != nil {
			t.Fatal(err)
		}
		got, err := objects(map[string]string{dir: string(kustomized(t, dir))})
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s (-chart +kustomize):\n%s", dir, d)
		}
	}
}

// anyOrder compares lists of things with names by these: where in its list a
// patch puts a container is kustomize's affair.
var anyOrder = cmp.FilterValues(func(a, b []any) bool {
	return len(named(a)) == len(a) && len(named(b)) == len(b)
}, cmp.Transformer("named", named))

// TestComponentsAreTheChart: base and each overlay with a component are the same
// objects as the chart's with what the component stands for.
func TestComponentsAreTheChart(t *testing.T) {
	for _, c := range componentNames() {
		for _, name := range append(overlays, "") {
			given, dir := values{}, "base"
			if name != "" {
				given, dir = exampleValues(t, name), "overlays/"+name
			}
			maps.Copy(given, forBase())
			maps.Copy(given, components[c].given())
			want, err := objects(map[string]string{"chart": string(charted(t, given))})
			if err != nil {
				t.Fatal(err)
			}
			got, err := objects(map[string]string{dir: string(composed(t, dir, c))})
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, got, anyOrder); d != "" {
				t.Errorf("%s with %s (-chart +kustomize):\n%s", dir, c, d)
			}
		}
	}
}

// TestExamplesAreOverlays: no example is left without its overlay.
func TestExamplesAreOverlays(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(root, examplesDir, "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		names = append(names, strings.TrimSuffix(filepath.Base(f), ".yaml"))
	}
	if !slices.Equal(names, overlays) {
		t.Errorf("examples %q, overlays %q", names, overlays)
	}
}

// TestDifference: the patch says what changed and nothing else, also where the
// overlays of today change nothing.
func TestDifference(t *testing.T) {
	base := values{"a": 1, "gone": 2, "list": []any{values{"name": "x", "v": 1}, values{"name": "y"}}, "args": []any{"1", "2"}}
	want := values{"a": 1, "list": []any{values{"name": "x", "v": 2}, values{"name": "z"}}, "args": []any{"1", "3"}}
	got, same := difference(base, want)
	expected := values{
		"gone": nil,
		"list": []any{values{"name": "x", "v": 2}, values{"name": "z"}, values{"name": "y", "$patch": "delete"}},
		"args": []any{"1", "3"},
	}
	if d := cmp.Diff(expected, got); d != "" || same {
		t.Errorf("same %v (-want +got):\n%s", same, d)
	}
	if _, same := difference(base, base); !same {
		t.Error("a thing differs from itself")
	}
}

// TestMakefile: the target that the rendered files name is there.
func TestMakefile(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil || !strings.Contains(string(text), "\nmanifests:") {
		t.Errorf("no target manifests: %v", err)
	}
}
