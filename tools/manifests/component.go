package main

import (
	"maps"
	"slices"
)

// addition is a part of the chart that is off by default, as a kustomize
// component: a user's kustomization adds it to base or to any overlay.
type addition struct {
	comment string
	given   func() values
}

var components = map[string]addition{
	"snapshot-metadata": {
		comment: `# The sidecar that tells backup programs which blocks of snapshots have changed,
# on top of base or of an overlay. It needs the CustomResourceDefinition
# SnapshotMetadataService in the cluster and the Secret vhdx-csi-snapshot-metadata
# with its certificate: docs/how-to/incremental-backups.md.
`,
		given: func() values {
			return values{"sidecars": values{"snapshotMetadata": values{"enabled": true}}}
		},
	},
}

func componentNames() []string { return slices.Sorted(maps.Keys(components)) }

// component puts into files what makes of base what the chart renders with the
// addition.
func component(name string, base, files map[string]string) error {
	c := components[name]
	l := layer{dir: rendered[2] + "/" + name + "/", comment: c.comment, kind: "Component"}
	return l.put(c.given(), base, files)
}
