package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/disk"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

const (
	// pipeSize and pipeBlock are of an image whose size is not known when it
	// is made: it grows as the input comes.
	pipeSize  = 1 << 30
	pipeBlock = 32 << 20
)

// fromPipe copies what standard input delivers.
func (c *conversion) fromPipe(ctx context.Context) (disk.Stats, error) {
	if c.o.resume {
		return disk.Stats{}, errors.New("--resume: a pipe cannot be read again from where it was left")
	}
	in := readInput(ctx)
	head := make([]byte, signatureSize)
	n, err := io.ReadFull(in, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return disk.Stats{}, fmt.Errorf("read standard input: %w", err)
	}
	if n == 0 {
		return disk.Stats{}, errors.New("standard input is empty")
	}
	in = io.MultiReader(bytes.NewReader(head[:n]), in)
	if c.sourceFormat = c.o.sourceFormat; c.sourceFormat == "" {
		if c.sourceFormat, err = formatOf(head[:n], "standard input"); err != nil {
			return disk.Stats{}, err
		}
	}
	if c.sourceFormat == formatVHDX {
		return c.fromSpool(ctx, in)
	}
	return c.fromStream(ctx, in)
}

// fromSpool reads an image that came through a pipe: its tables may lead
// anywhere, so all of it must be there.
func (c *conversion) fromSpool(ctx context.Context, in io.Reader) (disk.Stats, error) {
	f, err := spool(in)
	if err != nil {
		return disk.Stats{}, err
	}
	of, err := vhdx.NewOSFile(f, vhdx.FileOptions{})
	if err != nil {
		return disk.Stats{}, errors.Join(err, f.Close())
	}
	im, err := vhdx.Open(of, vhdx.OpenOptions{})
	if err != nil {
		return disk.Stats{}, err
	}
	stats, err := c.fromDisk(ctx, opened{source: im, name: c.from, format: formatVHDX, image: im})
	return stats, errors.Join(err, im.Close())
}

// fromStream copies raw data of unknown length.
func (c *conversion) fromStream(ctx context.Context, in io.Reader) (disk.Stats, error) {
	work := func(t disk.Target, sector int64) func(disk.Options) (disk.Stats, error) {
		return func(o disk.Options) (disk.Stats, error) { return disk.CopyStream(ctx, t, in, sector, o) }
	}
	switch device, err := kindOf(c.to); {
	case c.to == "-" && c.format == formatVHDX:
		return c.spooled(pipeSize, 0, func(t disk.Target) (disk.Stats, error) {
			return work(t, 512)(disk.Options{Workers: c.o.workers, Blank: true})
		})
	case c.to == "-":
		return disk.Stats{}, errors.New("raw from standard input to standard output: that is cat")
	case c.o.noCreate, err == nil && device:
		return c.streamIntoExisting(ctx, work)
	}
	unlock, err := c.lockReplaced()
	if err != nil {
		return disk.Stats{}, err
	}
	defer unlock()
	size := int64(0)
	if c.format == formatVHDX {
		size = c.forPipe()
	}
	t, err := c.create(c.to, size, 0)
	if err != nil {
		return disk.Stats{}, err
	}
	return c.finish(ctx, t, work(t, c.sectorOf()))
}

// forPipe chooses what depends on the size where that is not known.
func (c *conversion) forPipe() int64 {
	if c.o.create.BlockSize == 0 {
		c.o.create.BlockSize = pipeBlock
	}
	return pipeSize
}

// sectorOf is the unit of a new target's size.
func (c *conversion) sectorOf() int64 {
	if c.format == formatVHDX {
		return 512
	}
	return 1
}

func (c *conversion) streamIntoExisting(ctx context.Context, work func(disk.Target, int64) func(disk.Options) (disk.Stats, error)) (disk.Stats, error) {
	t, err := c.openTarget()
	if err != nil {
		return disk.Stats{}, err
	}
	bar := c.app.progress(ctx, c.o.quiet, "converting")
	stats, err := work(fixedSize{t}, 1)(c.copyOptions(bar))
	bar.end()
	return stats, errors.Join(err, t.Close())
}

// fixedSize hides that a target could be resized.
type fixedSize struct{ disk.Target }

// spooled makes an image in a temporary file and writes it to standard output.
func (c *conversion) spooled(size int64, sector int, work func(disk.Target) (disk.Stats, error)) (disk.Stats, error) {
	draft, err := vhdx.NewDraft(filepath.Join(os.TempDir(), "vhdxctl-output"))
	if err != nil {
		return disk.Stats{}, err
	}
	im, created, err := disk.CreateImageOn(draft, c.createOptions(size, sector))
	c.notes = append(c.notes, created.Adjusted...)
	if err != nil {
		return disk.Stats{}, errors.Join(err, draft.Close())
	}
	stats, err := work(im)
	if err == nil {
		err = im.Close()
	}
	if err == nil {
		err = printFile(draft.File())
	}
	return stats, errors.Join(err, draft.Close())
}

// printFile writes a file to standard output. Its own description does direct
// I/O, which io.Copy knows nothing of.
func printFile(f *os.File) error {
	again, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return err
	}
	_, err = io.Copy(os.Stdout, again)
	return errors.Join(err, again.Close())
}
