package driver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/stats"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/node"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// Name is the driver's name in Kubernetes.
const Name = "csi.vhdx.dev"

// Volumes is what the controller service needs of the pools. *[pool.Set] has it.
type Volumes interface {
	CreateVolume(ctx context.Context, spec pool.Spec) (pool.Volume, error)
	DeleteVolume(ctx context.Context, id string) error
	Volume(ctx context.Context, id string) (pool.Volume, error)
	List(ctx context.Context, token string, max int) ([]pool.Volume, string, error)
	Resize(ctx context.Context, id string, size int64) (pool.Volume, error)
	Modify(ctx context.Context, id string, c pool.Change) (pool.Volume, error)
}

// Attachments records which node may stage a volume. *[pool.Set] has it.
type Attachments interface {
	Attach(ctx context.Context, id, node string, readOnly bool) error
	Detach(ctx context.Context, id, node string) error
}

// Mounts makes volumes usable on this node. *[node.Manager] has it.
type Mounts interface {
	Stage(ctx context.Context, r node.StageRequest) error
	Unstage(ctx context.Context, volumeID, stagingPath string) error
	Publish(ctx context.Context, r node.PublishRequest) error
	Unpublish(ctx context.Context, volumeID, targetPath string) error
}

// Usage looks at volumes in use on this node. *[node.Manager] has it.
type Usage interface {
	Stats(ctx context.Context, volumeID, path string) (node.Stats, error)
	Expand(ctx context.Context, volumeID, path string) (int64, error)
}

// Pool is a pool as the controller service sees it.
type Pool struct {
	Name string
	// OnlyOn is the one node that reaches a local pool; "": the pool is the same
	// on every node that serves it.
	OnlyOn string
	// Capacity says what the pool can still promise. The node service needs it not.
	Capacity func(ctx context.Context) (pool.Capacity, error)
}

// Controller is what the controller service stands on.
type Controller struct {
	Volumes     Volumes
	Attachments Attachments
	Snapshots   Snapshots
	Groups      Groups
	Maps        Maps // of snapshots
	// Holders passes a call to the node that has the volume open; ErrNotHeld
	// where nobody has. Nil: nobody can be asked.
	Holders control.Holder
	// Untended, if set, is told of volumes that may have images that nobody needs
	// any more. It must not block.
	Untended func(volume string)
	// Pools of the process; the first is the default.
	Pools []Pool
}

// NodeService is what the node service stands on.
type NodeService struct {
	Mounts Mounts
	Usage  Usage
	// ID of this node.
	ID string
	// Pools that this node serves.
	Pools []Pool
	// MaxVolumes that fit on this node; 0: no limit is known.
	MaxVolumes int64
}

// Config says what to serve. A nil service is not served.
type Config struct {
	Version    string
	Controller *Controller
	Node       *NodeService
	Health     Health
	// Observe, if set, is told of each call that has been answered, with the
	// call's own context. It must not block.
	Observe func(ctx context.Context, c Call)
	// Stats, if set, is given to the gRPC server: it sees every call begin and end.
	Stats stats.Handler
	// WorkTimeout is when work that outlived its caller is told to give up.
	// 0: 30 minutes.
	WorkTimeout time.Duration
}

// Call is one that has been answered.
type Call struct {
	Method string // without its service: "NodeStageVolume"
	Volume string // the id or the name it is about; "": none
	Code   string // of gRPC: "OK", "NotFound", ...
	Err    error  // before it became a code; nil: none
	Took   time.Duration
}

// defaultWorkTimeout is far above any deadline of Kubernetes: a replay, a
// filesystem check or the space of a large fixed image may take its time.
const defaultWorkTimeout = 30 * time.Minute

func (c Config) check() error {
	if c.Controller == nil && c.Node == nil {
		return errors.New("neither a controller nor a node service to serve")
	}
	if err := c.Health.check(c.Node != nil); err != nil {
		return err
	}
	if c.Node != nil && (c.Node.ID == "" || len(c.Node.ID) > maxNodeID) {
		return fmt.Errorf("node id %q must have 1 to %d bytes", c.Node.ID, maxNodeID)
	}
	if c.Controller != nil {
		if err := checkPools(c.Controller.Pools); err != nil {
			return err
		}
	}
	if c.Node != nil {
		return checkPools(c.Node.Pools)
	}
	return nil
}
