package vhdx_test

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

// crowd is many users of one image at once.
type crowd struct {
	im    *vhdx.Image
	model *vhdxtest.Model
	steps int
}

const (
	crowdWriters = 4
	crowdPiece   = 4 * kib // of a writer, every crowdWriters*crowdPiece bytes
	crowdSize    = 40 * mib
)

// Writers of their own pieces of shared, new blocks, readers of everything,
// flushes, zeroes, discards and growth at once: each read shows what it may,
// and so does the image that is opened afterwards. Run it with -race.
func TestEverythingAtOnce(t *testing.T) {
	for name, open := range map[string]func(t *testing.T) func(vhdx.OpenOptions) (*vhdx.Image, error){
		"in memory": inMemory, "on a filesystem": onFilesystem, "a child in memory": childInMemory,
	} {
		t.Run(name, func(t *testing.T) {
			reopen := open(t)
			im, err := reopen(vhdx.OpenOptions{GrowthStep: 2 * mib})
			if err != nil {
				t.Fatalf("open: %v", err)
			}
			c := &crowd{im: im, model: vhdxtest.NewModel(9, crowdSize), steps: 1500}
			if testing.Short() {
				c.steps = 300
			}
			if err := errors.Join(c.work(), im.Close()); err != nil {
				t.Fatal(err)
			}
			if im, err = reopen(vhdx.OpenOptions{ReadOnly: true}); err != nil {
				t.Fatalf("open again: %v", err)
			}
			c.im = im
			if err := errors.Join(c.readAll(), im.Close()); err != nil {
				t.Fatalf("opened again: %v", err)
			}
		})
	}
}

func inMemory(t *testing.T) func(vhdx.OpenOptions) (*vhdx.Image, error) {
	file := vhdxtest.NewFile("crowd.vhdx")
	if _, err := vhdx.CreateOn(file, vhdx.CreateOptions{Size: crowdSize, BlockSize: mib}); err != nil {
		t.Fatalf("CreateOn: %v", err)
	}
	return func(o vhdx.OpenOptions) (*vhdx.Image, error) {
		file.Reopen()
		return vhdx.Open(file, o)
	}
}

// childInMemory is a child of an empty image: what it does not hold reads zero.
func childInMemory(t *testing.T) func(vhdx.OpenOptions) (*vhdx.Image, error) {
	base, child := vhdxtest.NewFile("base.vhdx"), vhdxtest.NewFile("child.vhdx")
	_, err := vhdx.CreateOn(base, vhdx.CreateOptions{Size: crowdSize, BlockSize: 4 * mib})
	must(t, err)
	im, err := vhdx.Open(base, vhdx.OpenOptions{ReadOnly: true})
	must(t, err)
	_, err = im.CreateChildOn(child, vhdx.ChildOptions{BlockSize: mib, RelativePath: "base.vhdx"})
	must(t, errors.Join(err, im.Close()))
	return func(o vhdx.OpenOptions) (*vhdx.Image, error) {
		child.Reopen()
		o.Parents = oneParent{base}
		return vhdx.Open(child, o)
	}
}

func onFilesystem(t *testing.T) func(vhdx.OpenOptions) (*vhdx.Image, error) {
	path := filepath.Join(t.TempDir(), "crowd.vhdx")
	if _, err := vhdx.Create(path, vhdx.CreateOptions{Size: crowdSize, BlockSize: mib}); err != nil {
		t.Fatalf("Create: %v", err)
	}
	return func(o vhdx.OpenOptions) (*vhdx.Image, error) { return vhdx.OpenPath(path, o) }
}

func (c *crowd) work() error {
	var wg sync.WaitGroup
	errs := make(chan error, 16)
	start := func(do func(r *rand.Rand) error, seed uint64, steps int) {
		r := rand.New(rand.NewPCG(seed, 5))
		wg.Go(func() {
			for range steps {
				if err := do(r); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	for i := range int64(crowdWriters) {
		start(func(r *rand.Rand) error { return c.write(r, i) }, uint64(i), c.steps)
	}
	start(c.read, 100, c.steps)
	start(c.read, 101, c.steps)
	start(func(*rand.Rand) error { return c.im.Flush() }, 102, c.steps/4)
	start(func(*rand.Rand) error { return c.im.Flush() }, 103, c.steps/4)
	start(func(r *rand.Rand) error { return c.im.Grow(c.im.Size() + 512*(1+r.Int64N(4096))) }, 104, c.steps/50)
	wg.Wait()
	close(errs)
	var all error
	for err := range errs {
		all = errors.Join(all, err)
	}
	return all
}

// write changes a piece that is this writer's alone.
func (c *crowd) write(r *rand.Rand, writer int64) error {
	off := (r.Int64N(crowdSize/crowdPiece/crowdWriters)*crowdWriters + writer) * crowdPiece
	off += r.Int64N(4) * 512
	n := 512 * (1 + r.Int64N(4))
	do := func(ch *vhdxtest.Change) error { _, err := c.im.WriteAt(ch.Data, off); return err }
	begin := c.model.Write
	switch r.IntN(8) {
	case 0:
		begin, do = c.model.Zero, func(*vhdxtest.Change) error { return c.im.WriteZeroes(off, n) }
	case 1:
		begin, do = c.model.Zero, func(*vhdxtest.Change) error { return c.im.Discard(off, n) }
	}
	change := begin(off, n)
	err := do(change)
	change.Done(err)
	return err
}

func (c *crowd) read(r *rand.Rand) error {
	p := make([]byte, 512*(1+r.Int64N(256)))
	off := r.Int64N((crowdSize-int64(len(p)))/512) * 512
	since := c.model.Version()
	if n, err := c.im.ReadAt(p, off); err != nil {
		return fmt.Errorf("read %d of %d bytes at %#x: %w", n, len(p), off, err)
	}
	return c.model.CheckRead(p, off, since)
}

func (c *crowd) readAll() error {
	p := make([]byte, mib)
	for off := int64(0); off < crowdSize; off += mib {
		if _, err := c.im.ReadAt(p, off); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if err := c.model.CheckLive(p, off, nil); err != nil {
			return err
		}
	}
	return nil
}

// A request that meets Close is served or refused, never lost or half done.
func TestCloseAmongRequests(t *testing.T) {
	for seed := range uint64(20) {
		reopen := inMemory(t)
		im, err := reopen(vhdx.OpenOptions{GrowthStep: mib})
		if err != nil {
			t.Fatalf("open: %v", err)
		}
		c := &crowd{im: im, model: vhdxtest.NewModel(9, crowdSize)}
		var wg sync.WaitGroup
		for i := range int64(crowdWriters) {
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			wg.Go(func() {
				for c.write(r, i) == nil {
				}
			})
		}
		wg.Go(func() {
			for im.Flush() == nil {
			}
		})
		for range seed * 3 {
			_ = im.Flush() // some time passes
		}
		if err := im.Close(); err != nil {
			t.Fatalf("Close: %v", err)
		}
		wg.Wait()
		if im, err = reopen(vhdx.OpenOptions{ReadOnly: true, RefuseDirty: true}); err != nil {
			t.Fatalf("open again: %v", err)
		}
		c.im = im
		if err := errors.Join(c.readAll(), im.Close()); err != nil {
			t.Fatalf("opened again: %v", err)
		}
	}
}
