package main

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	groupv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

const (
	deploy     = root + "/deploy/kubernetes"
	driverName = "csi.vhdx.dev"
)

// decode reads every document strictly: an unknown or doubled field is an error.
func decode(t *testing.T, name string, content []byte) []runtime.Object {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		appsv1.AddToScheme, corev1.AddToScheme, networkingv1.AddToScheme, policyv1.AddToScheme, rbacv1.AddToScheme,
		storagev1.AddToScheme, snapshotv1.AddToScheme, groupv1.AddToScheme, monitoringv1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	docs := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(content)))
	var objects []runtime.Object
	for {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			return objects
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		o, _, err := decoder.Decode(doc, nil, nil)
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, doc)
		}
		objects = append(objects, o)
	}
}

// kustomized gives what kustomize makes of a directory below deploy/kubernetes.
func kustomized(t *testing.T, dir string) []byte {
	t.Helper()
	return built(t, filepath.Join(deploy, dir))
}

func built(t *testing.T, dir string) []byte {
	t.Helper()
	res, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		t.Fatalf("kustomize build %s: %v", dir, err)
	}
	content, err := res.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// composed gives what kustomize makes of such a directory and a component.
func composed(t *testing.T, dir, component string) []byte {
	t.Helper()
	top := t.TempDir()
	from, err := filepath.Abs(deploy)
	if err == nil {
		from, err = filepath.Rel(top, from) // kustomize takes no absolute path
	}
	if err != nil {
		t.Fatal(err)
	}
	l := layer{resources: []string{filepath.Join(from, dir)}}
	text := l.kustomization() + "components:\n  - " + filepath.Join(from, "components", component) + "\n"
	if err := os.WriteFile(filepath.Join(top, "kustomization.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return built(t, top)
}

// charted gives what the chart makes of values, as one text.
func charted(t *testing.T, given values) []byte {
	t.Helper()
	files, err := render(given)
	if err != nil {
		t.Fatal(err)
	}
	delete(files, notes)
	var texts []string
	for _, name := range slices.Sorted(maps.Keys(files)) {
		texts = append(texts, files[name])
	}
	return []byte(strings.Join(texts, "---\n"))
}

// exampleValues reads an example of the chart.
func exampleValues(t *testing.T, name string) values {
	t.Helper()
	given, _, err := example(name)
	if err != nil {
		t.Fatal(err)
	}
	return given
}
