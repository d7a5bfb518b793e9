package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/loopdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// rawVolumes is a pool of plain files with records beside them, so that
// another process finds both.
type rawVolumes struct {
	dir string

	mu   sync.Mutex
	fail map[string]error // by method
}

func (p *rawVolumes) file(id string) string {
	sum := sha256.Sum256([]byte(p.dir + id))
	return filepath.Join(p.dir, "node-test-"+hex.EncodeToString(sum[:8]))
}

func (p *rawVolumes) has(tag string) bool {
	_, err := os.Stat(filepath.Join(p.dir, tag))
	return err == nil && strings.HasPrefix(tag, "node-test-")
}

func (p *rawVolumes) failing(method string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fail == nil {
		p.fail = map[string]error{}
	}
	p.fail[method] = err
}

func (p *rawVolumes) failure(method string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fail[method]
}

// create makes a volume of size bytes with the use never.
func (r *rig) create(id string, size int64, params pool.Params) {
	r.t.Helper()
	if err := os.MkdirAll(r.vols.dir, 0o700); err != nil {
		r.t.Fatal(err)
	}
	f, err := os.Create(r.vols.file(id))
	if err == nil {
		err = errors.Join(f.Truncate(size), f.Close())
	}
	if err == nil {
		err = r.vols.put(pool.Volume{ID: id, Size: size, Params: params, Use: pool.UseNever,
			Attachments: []pool.Attachment{{Node: "other"}, {Node: "node-1"}}})
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

func (p *rawVolumes) put(v pool.Volume) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	tmp := p.file(v.ID) + ".tmp"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, p.file(v.ID)+".record")
}

func (p *rawVolumes) records() map[string]pool.Volume {
	m := map[string]pool.Volume{}
	names, _ := filepath.Glob(filepath.Join(p.dir, "*.record"))
	for _, n := range names {
		var v pool.Volume
		b, _ := os.ReadFile(n)
		if json.Unmarshal(b, &v) == nil {
			m[v.ID] = v
		}
	}
	return m
}

func (p *rawVolumes) Volume(_ context.Context, id string) (pool.Volume, error) {
	if err := p.failure("Volume"); err != nil {
		return pool.Volume{}, err
	}
	v, ok := p.records()[id]
	if !ok {
		return v, fmt.Errorf("volume %q: %w", id, pool.ErrNotFound)
	}
	return v, nil
}

func (p *rawVolumes) set(id, method string, change func(*pool.Volume)) error {
	if err := p.failure(method); err != nil {
		return err
	}
	v, err := p.Volume(context.Background(), id)
	if err != nil {
		return err
	}
	change(&v)
	return p.put(v)
}

func (p *rawVolumes) BeginFormat(_ context.Context, id, fsType string) error {
	return p.set(id, "BeginFormat", func(v *pool.Volume) { v.Use, v.FSType = pool.UseFormatting, fsType })
}

func (p *rawVolumes) SetUse(_ context.Context, id string, u pool.Use) error {
	return p.set(id, "SetUse", func(v *pool.Volume) { v.Use = u })
}

func (p *rawVolumes) Cut(context.Context, string, pool.Live) (pool.Snapshot, error) {
	return pool.Snapshot{}, errors.New("these volumes are plain files")
}

func (p *rawVolumes) Switch(context.Context, string, *vhdx.Image) error {
	return errors.New("these volumes are plain files")
}

func (p *rawVolumes) OpenImage(context.Context, string, bool, vhdx.OpenOptions) (*vhdx.Image, error) {
	return nil, errors.New("these volumes are plain files")
}

func (p *rawVolumes) use(t *testing.T, id string) pool.Use {
	t.Helper()
	v, err := p.Volume(context.Background(), id)
	if err != nil {
		t.Fatal(err)
	}
	return v.Use
}

func (p *rawVolumes) open(id string, readOnly bool) (*rawImage, error) {
	if err := p.failure("open"); err != nil {
		return nil, err
	}
	v, ok := p.records()[id]
	if !ok {
		return nil, pool.ErrNotFound
	}
	f, err := os.OpenFile(p.file(id), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(pool.ErrInUse, f.Close())
	}
	return &rawImage{File: f, id: id, pool: p, readOnly: readOnly, fixed: v.Params.Fixed, sector: max(v.Params.LogicalSectorSize, 512)}, nil
}

// rawImage is a plain file as an image.
type rawImage struct {
	*os.File
	id       string
	pool     *rawVolumes
	readOnly bool
	fixed    bool
	sector   int
}

func (im *rawImage) ReadAt(p []byte, off int64) (int, error) {
	if err := im.pool.failure("read"); err != nil {
		return 0, err
	}
	return im.File.ReadAt(p, off)
}

func (im *rawImage) WriteZeroes(off, n int64) error { return im.Discard(off, n) }

func (im *rawImage) Discard(off, n int64) error {
	return unix.Fallocate(int(im.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

func (im *rawImage) Flush() error { return im.Sync() }

func (im *rawImage) Size() int64 {
	fi, err := im.Stat()
	if err != nil {
		return 0
	}
	return fi.Size()
}

func (im *rawImage) Grow(size int64) error   { return im.Truncate(size) }
func (im *rawImage) LogicalSectorSize() int  { return im.sector }
func (im *rawImage) PhysicalSectorSize() int { return 4096 }
func (im *rawImage) ReadOnly() bool          { return im.readOnly }
func (im *rawImage) Info() vhdx.Info         { return vhdx.Info{Fixed: im.fixed} }

func (im *rawImage) Blank() (bool, error) {
	if err := im.pool.failure("read"); err != nil {
		return false, err
	}
	for off := int64(0); ; {
		var err error
		off, err = unix.Seek(int(im.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		buf := make([]byte, 64<<10)
		n, err := im.File.ReadAt(buf, off)
		if strings.Trim(string(buf[:n]), "\x00") != "" {
			return false, nil
		}
		if errors.Is(err, io.EOF) {
			return true, nil
		}
		off += int64(n)
	}
}

// loopAttacher makes loop devices straight on the files of rawVolumes.
type loopAttacher struct {
	vols *rawVolumes
	busy bool            // Detach and Teardown answer ErrBusy
	last blockdev.Config // under vols.mu
}

func (a *loopAttacher) Name() string { return "loop on a plain file" }

func (a *loopAttacher) Attach(_ context.Context, c blockdev.Config) (blockdev.Device, error) {
	if err := a.vols.failure("Attach"); err != nil {
		return nil, err
	}
	a.vols.mu.Lock()
	a.last = c
	a.vols.mu.Unlock()
	im := c.Image.(*rawImage)
	path, err := loopdev.Attach(loopdev.Config{
		File: im.File, BlockSize: im.sector, ReadOnly: im.readOnly, Tag: filepath.Base(im.Name())})
	if err != nil {
		return nil, err
	}
	return &loopDevice{path: path, tag: filepath.Base(im.Name()), a: a, done: make(chan struct{})}, nil
}

func (a *loopAttacher) Teardown(_ context.Context, id string) error {
	devs, err := loopdev.Find(filepath.Base(a.vols.file(id)))
	if err != nil {
		return err
	}
	for _, d := range devs {
		if err := a.detach(d.Number, d.Tag); err != nil {
			return err
		}
	}
	return nil
}

func (a *loopAttacher) detach(n int, tag string) error {
	if a.busy {
		return blockdev.ErrBusy
	}
	_, err := loopdev.Detach(n, tag)
	if errors.Is(err, loopdev.ErrBusy) {
		return fmt.Errorf("%w: %w", blockdev.ErrBusy, err)
	}
	return err
}

type loopDevice struct {
	path, tag string
	a         *loopAttacher
	done      chan struct{}
	err       error
}

func (d *loopDevice) number() int { n, _ := loopdev.Number(d.path); return n }

func (d *loopDevice) Path() string                 { return d.path }
func (d *loopDevice) Resize(context.Context) error { return loopdev.SetCapacity(d.number(), d.tag, 0) }
func (d *loopDevice) Done() <-chan struct{}        { return d.done }
func (d *loopDevice) Err() error                   { return d.err }

func (d *loopDevice) Detach(context.Context) error {
	if err := d.a.detach(d.number(), d.tag); err != nil {
		return err
	}
	if !ended(d) {
		close(d.done)
	}
	return nil
}

// die is the end of the server of id's device.
func (r *rig) die(id string) {
	d := r.m.volumes[id].dev.(*loopDevice)
	d.err = errors.New("killed by the test")
	close(d.done)
}

func configOf(im *rawImage) blockdev.Config { return blockdev.Config{ID: im.id, Image: im} }
