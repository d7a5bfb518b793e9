package pool

import "context"

// MaxName is the longest volume name in bytes.
const MaxName = 128

// Options says which directory is a pool and what may be promised of it.
type Options struct {
	// Name of the pool: 1 to 32 of a-z, 0-9 and "-". It is part of every volume id.
	Name string
	// Dir is its directory. Empty directories become a pool.
	Dir string
	// Overcommit is how many times the filesystem's size may be promised. 0: 1.
	Overcommit float64
	// Reserve is how many bytes are never promised and never taken by a fixed image.
	Reserve int64
	// AllowUnsafe opens a pool whose mount options are unsafe.
	AllowUnsafe bool
	// Holder is this process in lease records: its node id. "": the host name.
	Holder string
}

// Pool is one directory of volumes. Its methods may be called from several
// goroutines, and any number of processes on any number of nodes may have the
// same directory open.
type Pool struct{}

// Open opens the pool in o.Dir and makes one of an empty directory.
func Open(o Options) (*Pool, error) { panic("stub") }

// Close gives up the pool's directory. Images opened from it stay open.
func (p *Pool) Close() error { panic("stub") }

// Name is the pool's name.
func (p *Pool) Name() string { panic("stub") }

// Capacity says what the pool has, has promised and can still promise.
func (p *Pool) Capacity(ctx context.Context) (Capacity, error) { panic("stub") }
