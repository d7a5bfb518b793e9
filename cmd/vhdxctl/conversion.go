package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/disk"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// conversion is a convert under way.
type conversion struct {
	app      *app
	from, to string
	o        convertOptions

	sourceFormat string
	format       string
	resumedAt    int64
	sector       int64 // a target's size is a multiple of it
	notes        []string
}

// finisher is a new target: it gets its name at the end, or nothing is left.
type finisher interface {
	disk.Target
	// Fill gives the file all of its space.
	Fill() error
	Publish(replace bool) error
	Abort() error
}

func (c *conversion) run(ctx context.Context) (disk.Stats, error) {
	if err := c.check(); err != nil {
		return disk.Stats{}, err
	}
	if c.from == "-" && !stdinIsFile() {
		return c.fromPipe(ctx)
	}
	from := c.from
	if from == "-" {
		from = stdinFile
	}
	src, err := c.app.openSource(from, c.o.sourceFormat)
	if err != nil {
		return disk.Stats{}, err
	}
	c.sourceFormat = src.format
	stats, err := c.fromDisk(ctx, src)
	return stats, errors.Join(err, src.Close())
}

// check refuses what would destroy something, before anything is opened.
func (c *conversion) check() (err error) {
	if c.format, err = formatFor(c.to, c.o.format); err != nil || c.to == "-" {
		return err
	}
	target, err := os.Stat(c.to)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if c.o.noCreate {
			return err
		}
		return nil
	case err != nil:
		return err
	case !c.o.noCreate && !c.o.overwrite:
		return &os.PathError{Op: "convert to", Path: c.to, Err: errTargetExists}
	}
	if source, err := os.Stat(c.from); err == nil && os.SameFile(source, target) {
		return fmt.Errorf("%s: source and target are one file", c.to)
	}
	return nil
}

// errTargetExists is fs.ErrExist with another advice.
var errTargetExists = fmt.Errorf("%w", fs.ErrExist)

func (c *conversion) fromDisk(ctx context.Context, src opened) (disk.Stats, error) {
	switch {
	case c.to == "-":
		return c.toOutput(ctx, src)
	case c.o.noCreate:
		return c.intoExisting(ctx, src)
	case c.o.resume:
		return c.resumable(ctx, src)
	}
	if device, err := kindOf(c.to); err == nil && device {
		return c.intoExisting(ctx, src) // --overwrite
	}
	unlock, err := c.lockReplaced()
	if err != nil {
		return disk.Stats{}, err
	}
	defer unlock()
	t, err := c.create(c.to, src.Size(), src.sector())
	if err != nil {
		return disk.Stats{}, err
	}
	return c.finish(ctx, t, func(o disk.Options) (disk.Stats, error) { return disk.Copy(ctx, t, src.source, o) })
}

// finish copies to a new target and gives it its name.
func (c *conversion) finish(ctx context.Context, t finisher, work func(disk.Options) (disk.Stats, error)) (disk.Stats, error) {
	bar := c.app.progress(ctx, c.o.quiet, "converting")
	o := c.copyOptions(bar)
	o.Blank = true
	stats, err := work(o)
	bar.end()
	if err != nil {
		return stats, errors.Join(err, t.Abort())
	}
	if c.o.noSparse {
		if err := t.Fill(); err != nil {
			return stats, errors.Join(err, t.Abort())
		}
	}
	return stats, t.Publish(c.o.overwrite)
}

// create begins a new target of size bytes.
func (c *conversion) create(path string, size int64, sector int) (finisher, error) {
	if c.format == formatRaw {
		return disk.CreateFile(path, size)
	}
	c.sector = int64(max(sector, 512))
	im, created, err := disk.CreateImage(path, c.createOptions(size, sector))
	c.notes = append(c.notes, created.Adjusted...)
	if err != nil {
		return nil, err
	}
	return im, nil
}

func (c *conversion) createOptions(size int64, sector int) vhdx.CreateOptions {
	o := c.o.create
	o.Size, o.LogicalSectorSize = size, sector
	return o
}

// lockReplaced makes sure that nobody has the file open that will be replaced.
func (c *conversion) lockReplaced() (unlock func(), err error) {
	f, err := os.OpenFile(c.to, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return func() {}, nil
	}
	if err != nil {
		return nil, err
	}
	locked, err := vhdx.NewOSFile(f, vhdx.FileOptions{Buffered: true})
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { _ = locked.Close() }, nil
}

// intoExisting writes into what is there.
func (c *conversion) intoExisting(ctx context.Context, src opened) (disk.Stats, error) {
	t, err := c.openTarget()
	if err != nil {
		return disk.Stats{}, err
	}
	if t.Size() > src.Size() {
		c.notes = append(c.notes, fmt.Sprintf("%s is larger than the source: what it holds beyond %s stays as it was", c.to, exactSize(src.Size())))
	}
	bar := c.app.progress(ctx, c.o.quiet, "converting")
	stats, err := disk.Copy(ctx, t, src.source, c.copyOptions(bar))
	bar.end()
	if errors.Is(err, context.Canceled) {
		err = fmt.Errorf("%w: %w", errHalfWritten, err)
	}
	return stats, errors.Join(err, t.Close())
}

var errHalfWritten = errors.New("the target is written in part")

// existing is a target that was there.
type existing interface {
	disk.Target
	io.Closer
}

func (c *conversion) openTarget() (existing, error) {
	device, err := kindOf(c.to)
	if err != nil {
		return nil, err
	}
	if device {
		if c.o.format == formatVHDX {
			return nil, fmt.Errorf("%s: a VHDX is a file; to a block device goes raw", c.to)
		}
		c.format = formatRaw
		return disk.OpenDevice(c.to, true)
	}
	if c.o.format == "" {
		if c.format, err = probeFile(c.to); err != nil {
			return nil, err
		}
	}
	if c.format == formatVHDX {
		return c.app.openImage(c.to, vhdx.OpenOptions{})
	}
	return disk.OpenFile(c.to, true)
}

// toOutput writes to standard output: raw as it is read, a VHDX when it is
// complete, since its tables come first.
func (c *conversion) toOutput(ctx context.Context, src opened) (disk.Stats, error) {
	bar := c.app.progress(ctx, c.o.quiet, "converting")
	defer bar.end()
	o := c.copyOptions(bar)
	if c.format == formatRaw {
		o.Whole = true
		return disk.Copy(ctx, disk.NewStream(os.Stdout, src.Size()), src.source, o)
	}
	return c.spooled(src.Size(), src.sector(), func(t disk.Target) (disk.Stats, error) {
		o.Blank = true
		return disk.Copy(ctx, t, src.source, o)
	})
}
