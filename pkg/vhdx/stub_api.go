package vhdx

// STUB: replaced piece by piece by the owner of pkg/vhdx. Signatures hold.

type barriers uint64

// Image is an open VHDX image.
type Image struct{}

// Open opens the image in f and takes f over: Close closes it (on error too).
func Open(f File, o OpenOptions) (*Image, error) { panic("stub") }

// OpenPath opens the image at path with a lock on the description all its I/O uses
// (exclusive when writable, shared when read-only; ErrInUse), O_DIRECT where the
// filesystem really does it.
func OpenPath(path string, o OpenOptions) (*Image, error) { panic("stub") }

// Create writes a new image at path: under a temporary name beside it, synced,
// renamed, the directory synced. An existing path is refused (fs.ErrExist).
func Create(path string, o CreateOptions) (Created, error) { panic("stub") }

// CreateOn writes a new image into the empty file f and syncs it. f stays open.
func CreateOn(f File, o CreateOptions) (Created, error) { panic("stub") }

func (im *Image) ReadAt(p []byte, off int64) (int, error)  { panic("stub") }
func (im *Image) WriteAt(p []byte, off int64) (int, error) { panic("stub") }
func (im *Image) WriteZeroes(off, n int64) error           { panic("stub") }
func (im *Image) Discard(off, n int64) error               { panic("stub") }
func (im *Image) Flush() error                             { panic("stub") }
func (im *Image) Grow(size int64) error                    { panic("stub") }
func (im *Image) Close() error                             { panic("stub") }
func (im *Image) Size() int64                              { panic("stub") }
func (im *Image) LogicalSectorSize() int                   { panic("stub") }
func (im *Image) PhysicalSectorSize() int                  { panic("stub") }
func (im *Image) ReadOnly() bool                           { panic("stub") }
func (im *Image) Info() Info                               { panic("stub") }

// Blank reports whether the virtual disk provably holds nothing but zeros: no
// payload block is allocated, or those that are hold only holes or zeros (read
// and compared, holes skipped).
func (im *Image) Blank() (bool, error) { panic("stub") }

// Poisoned returns the first failure that made the image refuse writes, or nil.
func (im *Image) Poisoned() error { panic("stub") }

func (im *Image) Pin(write bool, off, n int64) (fileOff int64, pin uint32, ok bool) { panic("stub") }
func (im *Image) Unpin(pin uint32)                                                 { panic("stub") }
func (im *Image) Descriptor() (fd int, align int)                                  { panic("stub") }
