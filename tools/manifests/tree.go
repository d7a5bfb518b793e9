package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// overlays are rendered from the chart's examples of the same name.
var overlays = []string{"hostpath", "nfs", "smb"}

const renderedNote = "# Rendered from " + chartDir + " by `make manifests`.\n"

// forBase are the values of base: the chart's own, and the namespace, which
// Helm would have to have before it can install anything.
func forBase() values { return values{"createNamespace": true} }

// tree gives everything that is rendered, by path from the root.
func tree() (map[string]string, error) {
	files := map[string]string{}
	base, err := render(forBase())
	if err != nil {
		return nil, err
	}
	delete(base, notes)
	for name, text := range base {
		files[rendered[0]+"/"+name] = renderedNote + text
	}
	whole := layer{
		comment:   "# The driver, with its pool in a directory that every node has at the same path:\n# a share that is mounted there before the driver starts.\n",
		resources: slices.Sorted(maps.Keys(base)),
	}
	files[rendered[0]+"/kustomization.yaml"] = whole.kustomization()
	for _, name := range overlays {
		if err := overlay(name, base, files); err != nil {
			return nil, fmt.Errorf("overlay %s: %w", name, err)
		}
	}
	for _, name := range componentNames() {
		if err := component(name, base, files); err != nil {
			return nil, fmt.Errorf("component %s: %w", name, err)
		}
	}
	page, err := reference()
	if err != nil {
		return nil, err
	}
	files[referencePage] = page
	return files, nil
}

// overlay puts into files what makes of base what the chart renders with the
// example's values.
func overlay(name string, base, files map[string]string) error {
	given, comment, err := example(name)
	if err != nil {
		return err
	}
	l := layer{dir: rendered[1] + "/" + name + "/", comment: comment, resources: []string{"../../base"}}
	return l.put(given, base, files)
}

// layer is a directory that kustomize puts on top of base.
type layer struct {
	dir, comment       string
	kind               string // "" is Kustomization
	resources, patches []string
}

// put puts into files what makes of base what the chart renders with the values
// given.
func (l layer) put(given values, base, files map[string]string) error {
	maps.Copy(given, forBase())
	want, err := render(given)
	if err != nil {
		return err
	}
	delete(want, notes)
	for _, file := range slices.Sorted(maps.Keys(want)) {
		switch {
		case base[file] == "":
			l.resources = append(l.resources, file)
			files[l.dir+file] = renderedNote + want[file]
		case base[file] != want[file]:
			text, err := patch(base[file], want[file])
			if err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			l.patches = append(l.patches, file)
			files[l.dir+file] = renderedNote + text
		}
	}
	files[l.dir+"kustomization.yaml"] = l.kustomization()
	return nil
}

func (l layer) kustomization() string {
	version, kind := "v1beta1", "Kustomization"
	if l.kind != "" {
		version, kind = "v1alpha1", l.kind
	}
	var b strings.Builder
	b.WriteString(l.comment + "#\n" + renderedNote)
	fmt.Fprintf(&b, "apiVersion: kustomize.config.k8s.io/%s\nkind: %s\nresources:\n", version, kind)
	for _, r := range l.resources {
		fmt.Fprintf(&b, "  - %s\n", r)
	}
	if len(l.patches) > 0 {
		b.WriteString("patches:\n")
	}
	for _, p := range l.patches {
		fmt.Fprintf(&b, "  - path: %s\n", p)
	}
	return b.String()
}

// patch is the strategic merge patch that makes want of base. A test builds the
// overlays and compares them with the chart, so what this cannot express shows.
func patch(base, want string) (string, error) {
	from, err := objects(map[string]string{"base": base})
	if err != nil {
		return "", err
	}
	to, err := objects(map[string]string{"want": want})
	if err != nil {
		return "", err
	}
	var docs []string
	for _, key := range slices.Sorted(maps.Keys(to)) {
		change, same := difference(from[key], to[key])
		if same {
			continue
		}
		p := change.(values)
		p["apiVersion"], p["kind"] = to[key]["apiVersion"], to[key]["kind"]
		meta, named := to[key]["metadata"].(values), values{}
		for _, k := range []string{"name", "namespace"} {
			if meta[k] != nil {
				named[k] = meta[k]
			}
		}
		p["metadata"] = named
		text, err := yaml.Marshal(p)
		if err != nil {
			return "", err
		}
		docs = append(docs, string(text))
	}
	return strings.Join(docs, "---\n"), nil
}

// difference gives what a strategic merge patch says to make want of base. Lists
// of things with names are merged by name, other lists are replaced.
func difference(base, want any) (change any, same bool) {
	switch want := want.(type) {
	case values:
		base, ok := base.(values)
		if !ok {
			return want, false
		}
		d := values{}
		for k, v := range want {
			if c, same := difference(base[k], v); !same {
				d[k] = c
			}
			if k == "containers" && d[k] != nil {
				d[k] = firstStays(d[k].([]any), v.([]any))
			}
		}
		for k := range base {
			if _, ok := want[k]; !ok {
				d[k] = nil
			}
		}
		return d, len(d) == 0
	case []any:
		if base, ok := base.([]any); ok && len(named(base)) == len(base) && len(named(want)) == len(want) && len(base) > 0 {
			return differenceByName(named(base), want)
		}
		return want, fmt.Sprint(base) == fmt.Sprint(want)
	}
	return want, base == want
}

// firstStays has a patch name the first container, even if only so. kustomize puts
// what is new before what the patch does not name, and the first is the one that
// kubectl takes when none is named.
func firstStays(change, want []any) []any {
	first := want[0].(values)["name"]
	if change[0].(values)["name"] == first {
		return change
	}
	return append([]any{values{"name": first}}, change...)
}

func differenceByName(base map[string]values, want []any) (change any, same bool) {
	var list []any
	for _, item := range want {
		item := item.(values)
		name := item["name"].(string)
		old, ok := base[name]
		delete(base, name)
		if !ok {
			list = append(list, item)
			continue
		}
		if c, same := difference(old, item); !same {
			c := c.(values)
			c["name"] = name
			list = append(list, c)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(base)) {
		list = append(list, values{"name": name, "$patch": "delete"})
	}
	return list, len(list) == 0
}

// named are the items of a list that are maps with a name.
func named(list []any) map[string]values {
	found := map[string]values{}
	for _, item := range list {
		if m, ok := item.(values); ok {
			if name, ok := m["name"].(string); ok {
				found[name] = m
			}
		}
	}
	return found
}
