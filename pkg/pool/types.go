package pool

import "time"

// Spec says which volume to create.
type Spec struct {
	Name string // any bytes, 1 to MaxName of them
	// Size in bytes, a multiple of the logical sector size. 0: as small as
	// Limit and the default of 1 GiB allow.
	Size int64
	// Limit is the largest size that will do. 0: none.
	Limit  int64
	Pool   string // "": the default pool
	Params Params
	// Source is what the volume begins with. Zero: nothing.
	Source Source
	Limits Limits
	OnFull OnFull // over what Params say
}

// Params are what the image and its filesystem are made with. Zero: default.
type Params struct {
	Fixed             bool   `json:"fixed,omitempty"`
	BlockSize         int64  `json:"blockSize,omitempty"`
	LogSize           int64  `json:"logSize,omitempty"`
	LogicalSectorSize int    `json:"logicalSectorSize,omitempty"`
	FSType            string `json:"fsType,omitempty"`
	MkfsOptions       string `json:"mkfsOptions,omitempty"`
	OnFull            OnFull `json:"onFull,omitempty"`
	// PauseLimit is how many seconds a write waits for space at most; 0: as
	// long as it takes.
	PauseLimit int64 `json:"pauseLimit,omitempty"`
}

// Use says how far a volume has come towards holding data. It only ever moves
// forward, or from formatting back to never.
type Use string

// The uses. A raw publish counts as mounted.
const (
	UseNever      Use = "never"
	UseFormatting Use = "formatting"
	UseMounted    Use = "mounted"
)

// Volume is what the record of a volume says.
type Volume struct {
	ID      string
	Name    string
	Pool    string
	Size    int64 // what the volume shall have; its image follows
	Params  Params
	Use     Use
	FSType  string // what it was formatted with; "" before
	Created time.Time
	Limits  Limits
	OnFull  OnFull // what holds now
	// Attachments in the order they were made.
	Attachments []Attachment
	// Layers is how many images lie below the one that is written.
	Layers int
	// Origin is the id of the volume on whose layer this one stands; "": on none.
	Origin string
	Image  string // absolute path of the image file, for messages and tools
}

// Attachment is a node that may stage the volume.
type Attachment struct {
	Node     string    `json:"node"`
	ReadOnly bool      `json:"readOnly,omitempty"`
	Since    time.Time `json:"since"`
}

// Node is a machine that may have volumes attached.
type Node struct {
	ID     string    `json:"id"`
	BootID string    `json:"bootId,omitempty"`
	Seen   time.Time `json:"seen"`
	// MaxVolumes that may be attached to it; 0: any number.
	MaxVolumes int64 `json:"maxVolumes,omitempty"`
	// Endpoints are where it can be asked about volumes, as address:port, the
	// best first, and Certificates whose key it has there. None: nowhere.
	Endpoints    []string      `json:"endpoints,omitempty"`
	Certificates []Certificate `json:"certificates,omitempty"`
}

// Capacity is what a pool has and has promised, in bytes.
type Capacity struct {
	// Total is the size of the pool's filesystem.
	Total int64
	// Available is what a new dynamic volume may still be: the room the policy leaves.
	Available int64
	// AvailableFixed is what a new fixed volume may still be: also bounded by
	// the filesystem's free space.
	AvailableFixed int64
	// Committed is the sum of what all volumes may grow to.
	Committed int64
	// Maximum is the largest volume the format allows.
	Maximum int64
}

// Problem is something in a pool's directory that does not belong there or
// cannot be read.
type Problem struct {
	Pool   string
	Path   string // relative to the pool's directory
	Reason string
}
