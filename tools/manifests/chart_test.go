package main

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"sigs.k8s.io/yaml"
)

// variants are sets of values under which everything is checked.
var variants = map[string]string{
	"defaults": `{}`,
	"everything on": `
openshift: {enabled: true}
imagePullSecrets: [{name: my-registry}]
sidecars: {snapshotter: {enabled: true, extraArgs: [--worker-threads=4]}, snapshotMetadata: {enabled: true, extraArgs: [--max-streaming-duration-min=60]}}
tracing: {endpoint: "http://collector.monitoring:4317"}
metrics:
  serviceMonitor: {enabled: true, labels: {release: prometheus}}
  prometheusRule: {enabled: true, labels: {release: prometheus}}
networkPolicy:
  metricsFrom: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]
  egress: [{ports: [{port: 6443}]}]
storageClasses:
  - {name: vhdx, default: true, parameters: {pool: default, csi.storage.k8s.io/fstype: xfs}, mountOptions: [noatime]}
  - {name: kept, reclaimPolicy: Retain, volumeBindingMode: Immediate}
volumeAttributesClasses: [{name: vhdx-silver, parameters: {iops: "2000", bandwidth: 100Mi}}]
controller: {replicas: 3, podAnnotations: {a: b}, extraArgs: [--work-timeout=1h]}
node: {podAnnotations: {a: b}, maxUnavailable: 10%, extraArgs: [--allow-device-loss], resources: {limits: {memory: 4Gi}}}
keeper: {podAnnotations: {a: b}}
`,
	"everything off": `
podDisruptionBudget: {enabled: false}
networkPolicy: {enabled: false}
node: {drainSeconds: 0}
events: {enabled: false}
metrics: {enabled: false}
keeper: {capabilities: []}
controller: {tolerations: []}
`,
	"elsewhere": `
image: {repository: registry.example.com/vhdx-csi, digest: "sha256:0123456789012345678901234567890123456789012345678901234567890123"}
node: {kubeletDir: /var/lib/k0s/kubelet, stateDir: /data/vhdx, drainSeconds: 30, shutdownSeconds: 50}
keeper: {runDir: /run/k0s-vhdx}
`,
	"many pools": `
pools:
  - {name: default, volume: {nfs: {server: 10.0.0.1, path: /a}}, options: [overcommit=2, reserve=10Gi]}
  - {name: fast, volume: {hostPath: {path: /mnt/fast, type: Directory}}, prepare: true}
  - {name: cephfs, volume: {persistentVolumeClaim: {claimName: mine}}}
  - {name: smb, persistentVolume: {csi: {driver: smb.csi.k8s.io, volumeHandle: x, volumeAttributes: {source: //s/x}}}}
`,
}

func variant(t *testing.T, name string) values {
	t.Helper()
	var given values
	if err := yaml.UnmarshalStrict([]byte(variants[name]), &given); err != nil {
		t.Fatal(err)
	}
	return given
}

func TestChart(t *testing.T) {
	for _, name := range slices.Sorted(maps.Keys(variants)) {
		t.Run(name, func(t *testing.T) {
			content := charted(t, variant(t, name))
			if strings.Contains(string(content), "<no value>") {
				t.Errorf("a template names a value that is not there:\n%s", content)
			}
			checkAll(t, decode(t, name, content))
		})
	}
}

// TestLint is what helm lint says.
func TestLint(t *testing.T) {
	for _, name := range slices.Sorted(maps.Keys(variants)) {
		result := lint.RunAll(filepath.Join(root, chartDir), variant(t, name), namespace)
		for _, m := range result.Messages {
			if m.Severity > 1 || !strings.Contains(m.Error(), "icon is recommended") {
				t.Errorf("%s: %v", name, m)
			}
		}
	}
}

// TestSchema: the schema knows every value there is, and refuses what is
// misspelt or cannot work.
func TestSchema(t *testing.T) {
	for _, bad := range []string{
		`{contoller: {replicas: 1}}`,
		`{controller: {replica: 1}}`,
		`{controller: {replicas: 0}}`,
		`{node: {drainSeconds: 90s}}`,
		`{node: {kubeletDir: relative}}`,
		`{node: {maxUnavailable: 0}}`,
		`{pools: []}`,
		`{pools: [{name: a}]}`,
		`{pools: [{name: a, volume: {emptyDir: {}}, persistentVolume: {nfs: {}}}]}`,
		`{pools: [{name: A_b, volume: {emptyDir: {}}}]}`,
		`{pools: [{name: a, volume: {emptyDir: {}}, options: [local=n]}]}`,
		`{image: {digest: latest}}`,
		`{keeper: {capabilities: [SYS_ADMIN]}}`,
		`{keeper: {resources: {memory: 64Mi, limits: {}}}}`,
		`{storageClasses: [{name: x, provisioner: y}]}`,
		`{volumeAttributesClasses: [{name: x}]}`,
		`{volumeAttributesClasses: [{name: x, parameters: {iops: 5}}]}`,
		`{metrics: {enabled: false, serviceMonitor: {enabled: true}}}`,
		`{tracing: {endpoint: "collector:4317"}}`,
		`{metrics: {port: 0}}`,
	} {
		var given values
		if err := yaml.UnmarshalStrict([]byte(bad), &given); err != nil {
			t.Fatal(err)
		}
		if _, err := render(given); err == nil {
			t.Errorf("accepts %s", bad)
		}
	}
	var defaults, schema values
	read(t, "values.yaml", &defaults)
	read(t, "values.schema.json", &schema)
	compareKeys(t, "", defaults, schema)
}

func read(t *testing.T, name string, into *values) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, chartDir, name))
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.UnmarshalStrict(text, into); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// compareKeys walks values.yaml and the schema side by side, as far as the
// schema lists keys.
func compareKeys(t *testing.T, path string, v, schema values) {
	properties, ok := schema["properties"].(values)
	if !ok {
		return
	}
	if schema["additionalProperties"] != false {
		t.Errorf("%s: the schema lets unknown keys pass", path)
	}
	for key, s := range properties {
		if _, ok := v[key]; !ok && path+key != "global" { // Helm gives it to a chart within a chart
			t.Errorf("%s.%s is in the schema and not in values.yaml", path, key)
		}
		if below, ok := v[key].(values); ok {
			compareKeys(t, path+"."+key, below, s.(values))
		}
	}
	for key := range v {
		if _, ok := properties[key]; !ok {
			t.Errorf("%s.%s is in values.yaml and not in the schema", path, key)
		}
	}
}

// TestItemsDocumented: the reference page has a row for each key that an item of
// a list can have.
func TestItemsDocumented(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(root, referencePage))
	if err != nil {
		t.Fatal(err)
	}
	var schema values
	read(t, "values.schema.json", &schema)
	for _, list := range []string{"pools", "storageClasses", "volumeAttributesClasses"} {
		items := schema["properties"].(values)[list].(values)["items"].(values)
		_, section, _ := strings.Cut(string(page), "Each item of `"+list+"`:")
		section, _, _ = strings.Cut(section, "\n## ")
		for key := range items["properties"].(values) {
			if !strings.Contains(section, "\n| `"+key+"` |") {
				t.Errorf("%s: no row for %s of %s", referencePage, key, list)
			}
		}
	}
}

// TestDashboards: what the chart would put into Grafana is JSON.
func TestDashboards(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(root, chartDir, "dashboards/*.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil || !json.Valid(text) {
			t.Errorf("%s: no JSON: %v", f, err)
		}
	}
	_, err = render(values{"metrics": values{"dashboard": values{"enabled": true}}})
	if (err == nil) != (len(files) > 0) {
		t.Errorf("%d dashboards; the chart says: %v", len(files), err)
	}
}
