package driver

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// where has these segments, which are given as pool, value, pool, value, ...
func where(pairs ...string) *csi.Topology {
	t := &csi.Topology{Segments: map[string]string{}}
	for i := 0; i < len(pairs); i += 2 {
		t.Segments[TopologyKey(pairs[i])] = pairs[i+1]
	}
	return t
}

// A node says which pools it serves, a volume which pool it is in.
func TestTopology(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change []func(*Config)
		mine   string
	}{{"shared", nil, sharedPool}, {"local", []func(*Config){localPool}, "node-1"}} {
		t.Run(tt.name, func(t *testing.T) {
			conn := serve(t, newFake(), tt.change...)
			info, err := csi.NewNodeClient(conn).NodeGetInfo(t.Context(), &csi.NodeGetInfoRequest{})
			if d := cmp.Diff(where("default", tt.mine, "fast", sharedPool), info.GetAccessibleTopology(), protocmp.Transform()); d != "" || err != nil {
				t.Errorf("node info: %v (-want +got)\n%s", err, d)
			}
			for poolName, value := range map[string]string{"default": tt.mine, "fast": sharedPool} {
				r, err := csi.NewControllerClient(conn).CreateVolume(t.Context(), createReq(func(r *csi.CreateVolumeRequest) {
					r.Name, r.Parameters = poolName, map[string]string{"pool": poolName}
				}))
				if d := cmp.Diff([]*csi.Topology{at(poolName, value)}, r.GetVolume().GetAccessibleTopology(), protocmp.Transform()); d != "" || err != nil {
					t.Errorf("volume in %s: %v (-want +got)\n%s", poolName, err, d)
				}
			}
			caps, err := csi.NewIdentityClient(conn).GetPluginCapabilities(t.Context(), &csi.GetPluginCapabilitiesRequest{})
			if err != nil || !strings.Contains(caps.String(), "VOLUME_ACCESSIBILITY_CONSTRAINTS") {
				t.Errorf("capabilities %v, %v", caps, err)
			}
		})
	}
}

// There is room, and a volume is made, where the pool is reached and nowhere else.
func TestWhereThereIsRoom(t *testing.T) {
	c := csi.NewControllerClient(serve(t, newFake(), localPool, func(c *Config) {
		c.Controller.Pools[1].Capacity = func(context.Context) (pool.Capacity, error) {
			return pool.Capacity{Available: 7 << 30, Maximum: maxVolume}, nil
		}
	}))
	upper := &csi.Topology{Segments: map[string]string{strings.ToUpper(TopologyKey("default")): "node-1"}}
	for i, tt := range []struct {
		pool string
		at   *csi.Topology
		want int64
	}{
		{"default", nil, 50 << 30},
		{"default", where("default", "node-1"), 50 << 30},
		{"default", upper, 50 << 30},
		{"default", where("default", "node-1", "fast", sharedPool), 50 << 30},
		{"default", where("default", "node-2", "fast", sharedPool), 0},
		{"default", where("fast", sharedPool), 0}, // a node that does not serve it
		{"fast", where("default", "node-2", "fast", sharedPool), 7 << 30},
		{"fast", where("default", "node-2"), 0},
		{"fast", &csi.Topology{Segments: map[string]string{"topology.kubernetes.io/zone": "a"}}, 7 << 30},
	} {
		params := map[string]string{"pool": tt.pool}
		r, err := c.GetCapacity(t.Context(), &csi.GetCapacityRequest{Parameters: params, AccessibleTopology: tt.at})
		if err != nil || r.GetAvailableCapacity() != tt.want {
			t.Errorf("room of %s at %v: %v, %v, want %d", tt.pool, tt.at, r, err, tt.want)
		}
		if tt.at == nil {
			continue
		}
		want := codes.OK
		if tt.want == 0 {
			want = codes.ResourceExhausted
		}
		_, err = c.CreateVolume(t.Context(), createReq(func(r *csi.CreateVolumeRequest) {
			r.Name, r.Parameters = fmt.Sprintf("v%d", i), params
			r.AccessibilityRequirements = &csi.TopologyRequirement{Requisite: []*csi.Topology{where("default", "node-3"), tt.at}}
		}))
		wantCode(t, err, want)
	}
}
