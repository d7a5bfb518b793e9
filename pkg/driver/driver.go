package driver

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"

	"google.golang.org/grpc/stats"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/node"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// Name is the driver's name in Kubernetes.
const Name = "csi.vhdx.dev"

// TopologyKey is the key of the one topology segment there is: the node that a
// local pool belongs to.
const TopologyKey = "topology." + Name + "/node"

// Volumes is what the controller service needs of the pools. *[pool.Set] has it.
type Volumes interface {
	CreateVolume(ctx context.Context, spec pool.Spec) (pool.Volume, error)
	DeleteVolume(ctx context.Context, id string) error
	Volume(ctx context.Context, id string) (pool.Volume, error)
	List(ctx context.Context, token string, max int) ([]pool.Volume, string, error)
	Resize(ctx context.Context, id string, size int64) (pool.Volume, error)
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
	// Local: only this node reaches it, so its volumes have a topology.
	Local bool
	// Capacity says what the pool can still promise.
	Capacity func(ctx context.Context) (pool.Capacity, error)
}

// Controller is what the controller service stands on.
type Controller struct {
	Volumes     Volumes
	Attachments Attachments
	Snapshots   Snapshots
	Groups      Groups
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
	// MaxVolumes that fit on this node; 0: no limit is known.
	MaxVolumes int64
}

// Config says what to serve. A nil service is not served.
type Config struct {
	Version    string
	Controller *Controller
	Node       *NodeService
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

// labelValue is what Kubernetes accepts as the value of a topology segment.
var labelValue = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)

func (c Config) check() error {
	if c.Controller == nil && c.Node == nil {
		return errors.New("neither a controller nor a node service to serve")
	}
	if c.Node != nil && (c.Node.ID == "" || len(c.Node.ID) > maxNodeID) {
		return fmt.Errorf("node id %q must have 1 to %d bytes", c.Node.ID, maxNodeID)
	}
	if !c.local() {
		return nil
	}
	if c.Node == nil {
		return errors.New("a local pool needs the node service in the same process (--mode=all): only its own node reaches it")
	}
	if !labelValue.MatchString(c.Node.ID) {
		return fmt.Errorf("node id %q cannot be a topology value, which a local pool needs: at most 63 letters, digits, '-', '_' and '.'", c.Node.ID)
	}
	return nil
}

// local reports whether any pool is local.
func (c Config) local() bool {
	return c.Controller != nil && slices.ContainsFunc(c.Controller.Pools, func(p Pool) bool { return p.Local })
}
