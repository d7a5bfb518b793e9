package vhdx

// File is the medium an image lives on. Reads and writes that overlap in time
// and touch different bytes must not disturb each other.
//
// A File may also implement [HolePuncher], [ZeroRanger] and [Allocator]; each
// may answer [errors.ErrUnsupported], and the image then does without.
type File interface {
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
	// Sync makes every write that has returned, and the file's size, survive a
	// power cut (fdatasync).
	Sync() error
	// Truncate sets the size. Growing adds bytes that read zero.
	Truncate(size int64) error
	Size() (int64, error)
	Close() error
	// Name is what error messages call the file: its path.
	Name() string
}

// HolePuncher frees the space of a range, which reads zero afterwards. The
// size stays. Durable after the next Sync.
type HolePuncher interface {
	PunchHole(off, length int64) error
}

// ZeroRanger makes a range read zero and keeps its space. Durable after the
// next Sync.
type ZeroRanger interface {
	ZeroRange(off, length int64) error
}

// Allocator reserves space for a range, growing the file where it must. Bytes
// never written read zero.
type Allocator interface {
	Allocate(off, length int64) error
}
