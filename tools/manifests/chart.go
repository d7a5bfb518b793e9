package main

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"helm.sh/helm/v4/pkg/chart/common"
	chartutil "helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	"sigs.k8s.io/yaml"
)

const (
	chartDir    = "deploy/helm/csi-driver-vhdx"
	examplesDir = chartDir + "/examples"
	namespace   = "vhdx-csi"
	notes       = "NOTES.txt"
)

// values are what a user gives with --values or --set.
type values = map[string]any

// render gives the chart's text for each template that says anything, by file
// name. It checks the values against the chart's schema, as helm does.
func render(given values) (map[string]string, error) {
	c, err := loader.LoadDir(filepath.Join(root, chartDir))
	if err != nil {
		return nil, fmt.Errorf("load the chart: %w", err)
	}
	release := common.ReleaseOptions{Name: "vhdx-csi", Namespace: namespace, Revision: 1, IsInstall: true}
	all, err := chartutil.ToRenderValues(c, given, release, common.DefaultCapabilities)
	if err != nil {
		return nil, fmt.Errorf("values of the chart: %w", err)
	}
	texts, err := engine.Render(c, all)
	if err != nil {
		return nil, fmt.Errorf("render the chart: %w", err)
	}
	files := map[string]string{}
	for name, text := range texts {
		base := path.Base(name)
		if text = tidy(text); text != "" && !strings.HasPrefix(base, "_") {
			files[base] = text
		}
	}
	return files, nil
}

// tidy leaves out blank documents and lines that templates leave behind.
func tidy(text string) string {
	var docs []string
	for doc := range strings.SplitSeq("\n"+text, "\n---\n") {
		var lines []string
		for line := range strings.Lines(doc) {
			if line = strings.TrimRight(line, " \n"); line != "" {
				lines = append(lines, line)
			}
		}
		if len(lines) > 0 {
			docs = append(docs, strings.Join(lines, "\n")+"\n")
		}
	}
	return strings.Join(docs, "---\n")
}

// objects parses rendered files, by kind and name.
func objects(files map[string]string) (map[string]values, error) {
	found := map[string]values{}
	for name, text := range files {
		if name == notes {
			continue
		}
		for doc := range strings.SplitSeq(text, "---\n") {
			var o values
			if err := yaml.UnmarshalStrict([]byte(doc), &o); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			if found[id(o)] != nil {
				return nil, fmt.Errorf("%s: a second %s", name, id(o))
			}
			found[id(o)] = o
		}
	}
	return found, nil
}

func id(o values) string {
	meta, _ := o["metadata"].(values)
	return fmt.Sprintf("%v %v", o["kind"], meta["name"])
}

// example reads one of the chart's examples: its values, and the comment at its
// head.
func example(name string) (given values, comment string, err error) {
	text, err := os.ReadFile(filepath.Join(root, examplesDir, name+".yaml"))
	if err != nil {
		return nil, "", err
	}
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "#") {
			break
		}
		comment += line
	}
	if err := yaml.UnmarshalStrict(text, &given); err != nil {
		return nil, "", fmt.Errorf("%s: %w", name, err)
	}
	return given, comment, nil
}
