package driver

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

// poolKeys begins the keys of all topology segments of the driver. There is one
// for each pool, so that a node says which pools it serves, a volume follows its
// pool, and the scheduler counts a pool's room once.
//
// What a node says comes from its command line and never from the share: kubelet
// asks when the plugin registers, while the share may be away, and refuses a
// node from then on whose value for a key is another.
const poolKeys = "pool." + Name + "/"

// sharedPool is the value of a segment whose pool is one and the same on every
// node that serves it.
const sharedPool = "shared"

// labelValue is what Kubernetes accepts as the value of a topology segment.
var labelValue = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)

// TopologyKey is the key of a pool's topology segment.
func TopologyKey(pool string) string { return poolKeys + pool }

// place is the value of the pool's topology segment.
func (p Pool) place() string {
	if p.OnlyOn != "" {
		return p.OnlyOn
	}
	return sharedPool
}

// topology is of what lies in all of these pools, or reaches them.
func topology(pools ...Pool) *csi.Topology {
	segments := make(map[string]string, len(pools))
	for _, p := range pools {
		segments[TopologyKey(p.Name)] = p.place()
	}
	return &csi.Topology{Segments: segments}
}

// reaches reports whether a place with this topology reaches the pool. Keys
// compare without case, as the specification says. One that names none of the
// driver's pools speaks of other things, and decides nothing here.
func reaches(t *csi.Topology, p Pool) bool {
	names := false
	for key, value := range t.GetSegments() {
		key = strings.ToLower(key)
		if key == TopologyKey(p.Name) {
			return value == p.place()
		}
		names = names || strings.HasPrefix(key, poolKeys)
	}
	return !names
}

// reachable refuses a pool that no place asked for reaches.
func reachable(p Pool, t *csi.TopologyRequirement) error {
	if len(t.GetRequisite()) == 0 || slices.ContainsFunc(t.GetRequisite(), func(t *csi.Topology) bool { return reaches(t, p) }) {
		return nil
	}
	return fmt.Errorf("%w: pool %s is reached by nodes with the label %s=%s only, and none of those asked for has it; let the class or the pod allow such a node, or serve the pool on its node, too",
		errNoRoomHere, p.Name, TopologyKey(p.Name), p.place())
}

// checkPools refuses what cannot be a topology segment.
func checkPools(pools []Pool) error {
	for _, p := range pools {
		if !labelValue.MatchString(p.place()) {
			return fmt.Errorf("pool %s: node id %q cannot be a topology value, which a local pool needs: at most 63 letters, digits, '-', '_' and '.'", p.Name, p.OnlyOn)
		}
	}
	return nil
}
