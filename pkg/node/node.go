package node

import (
	"context"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/keeper"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// Volumes is what this package needs of the pools; *pool.Set is one.
type Volumes interface {
	Volume(ctx context.Context, id string) (pool.Volume, error)
	OpenImage(ctx context.Context, id string, readOnly bool, o vhdx.OpenOptions) (*vhdx.Image, error)
	// BeginFormat records the use formatting, and the filesystem, durably.
	BeginFormat(ctx context.Context, id, fsType string) error
	SetUse(ctx context.Context, id string, u pool.Use) error
	// Cut makes the image as it is the snapshot, and a new one the volume's.
	Cut(ctx context.Context, snapshot string, l pool.Live) (pool.Snapshot, error)
	// Switch puts the image on what the layers below it were merged into.
	Switch(ctx context.Context, id string, im *vhdx.Image) error
}

// Keeper holds what must outlive this process; *keeper.Client is one.
type Keeper interface {
	Put(ctx context.Context, i keeper.Item) error
	Get(ctx context.Context, id string) (keeper.Item, error)
	Drop(ctx context.Context, id string, generation uint64) error
}

// Guard knows which volumes have killed their server; *supervisor.Link is one.
type Guard interface {
	// Blame says that what this process does until release is called could
	// kill it, and would be the fault of that volume.
	Blame(ctx context.Context, id string) (release func(), err error)
	// Quarantined lists volumes that must not be opened.
	Quarantined() []string
}

// Config says what a [Manager] works with.
type Config struct {
	// NodeID is what the journal calls this node.
	NodeID string
	// StateDir holds the attachment journal. One process uses it at a time.
	StateDir string
	// StateLocked: whoever has started this process holds the lock of
	// [LockState], and has killed every process that used the directory before.
	StateLocked bool
	Volumes     Volumes
	Attacher    blockdev.Attacher
	// Keeper makes devices outlive this process, if the attacher is a
	// [blockdev.Resumer] too. Nil: its death takes them along.
	Keeper Keeper
	// Guard is told what could kill this process. Nil: nobody.
	Guard Guard
	// Replayed, if set, is told of each log that an open of an image replayed.
	// It must not block.
	Replayed func(vhdx.ReplayInfo)
	// Deadlines of the helper processes; the zero value of each is its default.
	Deadlines Deadlines
}

// Deadlines says how long a helper process may take before it is given up.
type Deadlines struct {
	Probe   time.Duration // blkid, dumpe2fs; default 30 s
	Mount   time.Duration // mount, which replays the filesystem's log; default 5 min
	Unmount time.Duration // umount and removal of a device, which write back what is dirty; default 5 min
	Format  time.Duration // mkfs; default 10 min
	Check   time.Duration // e2fsck; default 30 min
	Resize  time.Duration // resize2fs and its like; default 10 min
	Sync    time.Duration // syncfs; default 2 min
	Stat    time.Duration // statfs; default 5 s
}

// StageRequest says how to stage a volume.
type StageRequest struct {
	VolumeID    string
	StagingPath string
	Block       bool   // raw: no filesystem
	FSType      string // ext4, xfs, btrfs; "": the record's, else ext4
	MountFlags  []string
	ReadOnly    bool // the image is opened, and its device made, read-only
}

// PublishRequest says how to publish a staged volume.
type PublishRequest struct {
	VolumeID     string
	StagingPath  string
	TargetPath   string
	Block        bool
	ReadOnly     bool
	FSType       string
	MountFlags   []string
	SingleWriter bool // a second target is refused
}

// Usage counts bytes or inodes.
type Usage struct{ Total, Used, Available int64 }

// Stats is how full a volume is.
type Stats struct {
	Block  bool
	Bytes  Usage
	Inodes Usage // zero for a raw volume
}

// Outcome is what became of a journal entry at start.
type Outcome string

// The outcomes of [Manager.Recover].
const (
	OutcomeDropped  Outcome = "dropped"   // nothing was left of it
	OutcomeTornDown Outcome = "torn down" // mounts and devices of it were removed
	OutcomeKept     Outcome = "kept"      // something still uses it; Err says what
	OutcomeResumed  Outcome = "resumed"   // served again, nothing was unmounted
	OutcomeWaiting  Outcome = "waiting"   // its requests wait until it can be served; Err says for what
	OutcomeSetAside Outcome = "set aside" // no readable entry; moved out of the way
)

// Outcomes are all of them.
var Outcomes = []Outcome{OutcomeDropped, OutcomeTornDown, OutcomeKept, OutcomeResumed, OutcomeWaiting, OutcomeSetAside}

// Recovered is what [Manager.Recover] did with one journal entry.
type Recovered struct {
	VolumeID string // "" where the entry could not be read
	File     string
	Outcome  Outcome
	Err      error
	// Took is how long after the beginning of Recover the device was served.
	Took time.Duration
}
