package pool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/fsx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool/lease"
)

// MaxName is the longest volume name in bytes.
const MaxName = 128

// What is in a pool's directory.
const (
	fileMarker  = "pool.json"
	fileAccount = "account.json"
	fileLocks   = "locks"

	dirVolumes   = "volumes"
	dirSnapshots = "snapshots"
	dirGroups    = "groups"
	dirCuts      = "cuts"
	dirRetired   = "retired"
	dirChildren  = "children"
	dirImages    = "images"
	dirNodes     = "nodes"
	dirLeases    = "leases"
	dirTemp      = "tmp"

	dirControllers = "controllers"
)

var directories = []string{
	dirVolumes, dirSnapshots, dirGroups, dirCuts, dirRetired, dirChildren, dirImages, dirNodes, dirControllers, dirLeases, dirTemp,
}

// Options says which directory is a pool and what may be promised of it.
type Options struct {
	// Name of the pool: 1 to 32 of a-z, 0-9 and, inside, "-". It is part of
	// every volume id, so a pool keeps it for life.
	Name string
	// Dir is its directory. An empty one becomes a pool.
	Dir string
	// Overcommit is how many times the filesystem's bytes may be promised. 0: 1.
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
type Pool struct {
	name       string
	uuid       string
	overcommit float64
	reserve    int64
	holder     lease.Holder
	unsafe     error // what Options.AllowUnsafe has let pass

	tree    *fsx.Tree
	leases  *lease.OFD
	keys    keyed
	maxHold time.Duration
	disk    func() (physical, error) // physical, unless a test needs to know
}

// marker is pool.json.
type marker struct {
	Pool    string    `json:"pool"` // UUID
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
}

// Open opens the pool in o.Dir and makes one of an empty directory.
// ErrInvalid, ErrUnsafeShare, ErrNotAPool, ErrFormat, ErrDamaged.
func Open(o Options) (*Pool, error) { return open(o, nil) }

// NameOf is the name that the pool in dir was made with. ErrNotAPool, ErrFormat,
// ErrDamaged.
func NameOf(dir string) (string, error) {
	tree, err := fsx.OpenTree(dir, dirTemp)
	if err != nil {
		return "", err
	}
	defer tree.Close()
	m, err := (&Pool{tree: tree}).marker()
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%s: %w: it has no %s", dir, ErrNotAPool, fileMarker)
	}
	return m.Name, err
}

func open(o Options, step func(op, path string) error) (*Pool, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	tree, err := fsx.OpenTree(o.Dir, dirTemp)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("its directory %s is not there; mount the share there, or name another: %w", o.Dir, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open pool %s: %w", o.Name, wayOut(err))
	}
	tree.Step = step
	p := &Pool{name: o.Name, overcommit: o.Overcommit, reserve: o.Reserve, tree: tree, maxHold: maxHold}
	if p.overcommit == 0 {
		p.overcommit = 1
	}
	p.disk = p.physical
	p.holder = lease.Self(o.Holder)
	p.leases = lease.NewOFD(tree, dirLeases, p.holder)
	if err := p.start(o); err != nil {
		tree.Close()
		return nil, fmt.Errorf("open pool %s: %w", o.Name, wayOut(err))
	}
	return p, nil
}

func (o Options) check() error {
	switch {
	case !validPoolName(o.Name):
		return fmt.Errorf("pool name %.64q: %w: 1 to %d of a-z, 0-9 and, inside, \"-\"", o.Name, ErrInvalid, maxPoolName)
	case o.Dir == "":
		return fmt.Errorf("pool %s: %w: no directory", o.Name, ErrInvalid)
	case o.Overcommit < 0 || o.Overcommit > 1000 || o.Overcommit != o.Overcommit:
		return fmt.Errorf("pool %s: %w: overcommit %v is not between 0 and 1000", o.Name, ErrInvalid, o.Overcommit)
	case o.Reserve < 0:
		return fmt.Errorf("pool %s: %w: reserve %d is negative", o.Name, ErrInvalid, o.Reserve)
	}
	return nil
}

func (p *Pool) start(o Options) error {
	if p.unsafe = checkShare(p.tree); p.unsafe != nil && !o.AllowUnsafe {
		return p.unsafe
	}
	if err := p.readMarker(o); err != nil {
		return err
	}
	if err := p.tree.Mkdirs(".", directories...); err != nil {
		return err
	}
	if err := p.makeLocks(); err != nil {
		return err
	}
	// What an earlier process left unfinished. What cannot be finished now is
	// tried again later and must not keep the pool closed.
	p.Collect(context.Background()) //nolint:errcheck // see above
	return nil
}

// readMarker reads the marker, after making it in an empty directory.
func (p *Pool) readMarker(o Options) error {
	m, err := p.marker()
	if errors.Is(err, fs.ErrNotExist) {
		if err := p.makeMarker(o); err != nil {
			return err
		}
		m, err = p.marker()
	}
	if err != nil {
		return err
	}
	if m.Name != o.Name {
		return fmt.Errorf("%w: %s is the pool named %q, whose volume ids contain that name; open it under it", ErrInvalid, o.Dir, m.Name)
	}
	p.uuid = m.Pool
	return nil
}

func (p *Pool) marker() (marker, error) {
	var m marker
	b, err := p.readFile(".", fileMarker, maxFile)
	if err != nil {
		return m, err
	}
	if _, err = decodeObject(b, &m); err != nil {
		return m, fmt.Errorf("marker %s: %w", fileMarker, err)
	}
	if !validPoolName(m.Name) || !validImage(m.Pool) {
		return m, fmt.Errorf("marker %s: %w: name %.64q, pool %.64q", fileMarker, ErrDamaged, m.Name, m.Pool)
	}
	return m, nil
}

// makeMarker is the first thing done in an empty directory. Of several
// processes one wins; the others read what it wrote.
func (p *Pool) makeMarker(o Options) error {
	root, err := p.tree.Dir(".")
	if err != nil {
		return err
	}
	entries, err := root.Entries()
	if err != nil {
		return err
	}
	for _, e := range entries {
		if ignorable(e.Name()) {
			continue
		}
		if _, err := p.marker(); !errors.Is(err, fs.ErrNotExist) {
			return err // another process was faster
		}
		return fmt.Errorf("%s: %w: it has no %s, but holds %.128q", o.Dir, ErrNotAPool, fileMarker, e.Name())
	}
	b, err := encodeObject(&marker{Pool: uuid.NewString(), Name: o.Name, Created: time.Now().UTC().Truncate(time.Second)}, nil)
	if err != nil {
		return err
	}
	tree, err := fsx.OpenTree(o.Dir, ".") // tmp does not exist yet
	if err != nil {
		return err
	}
	defer tree.Close()
	tree.Step = p.tree.Step
	if err := tree.LinkOnce(fileMarker, b); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// ignorable are names that filesystems and file servers put anywhere.
func ignorable(name string) bool {
	return name == "lost+found" || name == ".snapshot" || name == ".snapshots" ||
		strings.HasPrefix(name, ".nfs") || strings.HasPrefix(name, fsx.TempPrefix)
}

func (p *Pool) makeLocks() error {
	f, err := p.tree.Open(fileLocks, os.O_RDWR|os.O_CREATE|os.O_EXCL, fsx.FileMode)
	if errors.Is(err, fs.ErrExist) {
		f, err = p.tree.Open(fileLocks, os.O_RDWR, 0)
	}
	if err != nil {
		return err
	}
	f.Close()
	return p.tree.SyncDir(".")
}

// Close gives up the pool's directory. Images opened from it stay open.
func (p *Pool) Close() error { return p.tree.Close() }

// Name is the pool's name.
func (p *Pool) Name() string { return p.name }

// UUID is the pool's identity, whatever path it is mounted at.
func (p *Pool) UUID() string { return p.uuid }
