package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	yamlv3 "go.yaml.in/yaml/v3"
)

const (
	referencePage = "docs/reference/chart.md"
	tableBegin    = "<!-- values: written by make manifests -->\n"
	tableEnd      = "<!-- end of values -->\n"
)

// reference gives the reference page with the table of values brought up to
// date from values.yaml.
func reference() (string, error) {
	page, err := os.ReadFile(filepath.Join(root, referencePage))
	if err != nil {
		return "", err
	}
	head, rest, ok := strings.Cut(string(page), tableBegin)
	_, tail, ok2 := strings.Cut(rest, tableEnd)
	if !ok || !ok2 {
		return "", fmt.Errorf("%s lacks the marks around the table", referencePage)
	}
	rows, err := valueRows()
	if err != nil {
		return "", err
	}
	table := "| Value | Default | Meaning |\n|---|---|---|\n"
	for _, r := range rows {
		table += fmt.Sprintf("| `%s` | `%s` | %s |\n", r.path, r.def, strings.ReplaceAll(r.meaning, "|", "\\|"))
	}
	return head + tableBegin + table + tableEnd + tail, nil
}

type valueRow struct{ path, def, meaning string }

// valueRows are the values with a comment above them, in their order.
func valueRows() ([]valueRow, error) {
	text, err := os.ReadFile(filepath.Join(root, chartDir, "values.yaml"))
	if err != nil {
		return nil, err
	}
	var doc yamlv3.Node
	if err := yamlv3.Unmarshal(text, &doc); err != nil {
		return nil, err
	}
	return rowsOf("", doc.Content[0])
}

func rowsOf(prefix string, m *yamlv3.Node) ([]valueRow, error) {
	var rows []valueRow
	for i := 0; i < len(m.Content); i += 2 {
		key, value := m.Content[i], m.Content[i+1]
		path := prefix + key.Value
		switch {
		case key.HeadComment != "":
			def, err := inline(value)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
			rows = append(rows, valueRow{path, def, uncomment(key.HeadComment)})
		case value.Kind == yamlv3.MappingNode:
			below, err := rowsOf(path+".", value)
			if err != nil {
				return nil, err
			}
			rows = append(rows, below...)
		default:
			return nil, fmt.Errorf("values.yaml: %s has no comment that says what it is", path)
		}
	}
	return rows, nil
}

func uncomment(text string) string {
	var words []string
	for line := range strings.Lines(text) {
		words = append(words, strings.TrimSpace(strings.TrimPrefix(line, "#")))
	}
	return strings.Join(words, " ")
}

// inline writes a value on one line.
func inline(n *yamlv3.Node) (string, error) {
	var v any
	if err := n.Decode(&v); err != nil {
		return "", err
	}
	b, err := json.Marshal(v)
	return string(b), err
}
