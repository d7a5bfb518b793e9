package vhdx

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// CollapseOptions says how to merge the layers of a chain into a new image.
type CollapseOptions struct {
	// Layers is how many to merge, from the top down; the rest stay below the
	// new image. 0: all, and the new image has no parent.
	Layers int
	// RelativePath is how the new image names what stays below it. "": from
	// the paths.
	RelativePath string
	// BlockSize of the new image. 0: the top's.
	BlockSize int64
	// Progress, if set, is told how many bytes of the disk are merged. Its
	// error ends the work, which can be taken up again.
	Progress func(done, total int64) error

	step int64 // test switch: how many bytes are merged between two marks; 0: collapseStep
}

// collapseStep is how many bytes of the disk are merged between two marks of
// how far it has got.
const collapseStep = 1 << 30

// progressItem is the user item that marks an unfinished collapse: where to go
// on, 8 bytes.
const progressItem = "2b6f3a52-6c37-4a3c-9e0b-6d6f1f0a7c11"

// Collapse writes at path one image with the content of the upper layers of
// the chain whose top is the image at top, and with the top's identity: same
// data, same DataWriteGuid, so that children of the top can be put on it, see
// [Image.ReplaceParent]. Nothing in the chain may be open for writing.
//
// The work is done under the name path + ".part"; interrupted, the next call
// goes on there. path never names half an image and must not exist.
func Collapse(ctx context.Context, path, top string, parentsIn ParentOpener, o CollapseOptions) error {
	fail := func(err error) error { return fmt.Errorf("collapse %s into %s: %w", top, path, err) }
	if _, err := os.Lstat(path); err == nil {
		return fail(fs.ErrExist)
	}
	im, err := OpenPath(top, OpenOptions{ReadOnly: true, Parents: parentsIn})
	if err != nil {
		return fail(err)
	}
	defer im.Close()
	if base := im.layer(o.Layers); o.RelativePath == "" && o.Layers > 0 && base != nil {
		if o.RelativePath, err = relativePath(path, base.name); err != nil {
			return fail(err)
		}
	}
	part := path + ".part"
	f, err := os.OpenFile(part, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fail(err)
	}
	of, err := NewOSFile(f, FileOptions{})
	if err != nil {
		return fail(errors.Join(err, f.Close()))
	}
	if err := im.CollapseOn(ctx, of, o); err != nil {
		return fail(err)
	}
	if err := Rename(part, path, false); err != nil {
		return fail(err)
	}
	return nil
}

// CollapseOn is Collapse of this image, open read-only, into the file f, which
// it takes over: empty, or as an interrupted CollapseOn with the same options
// left it. Order:
//
//	data -> flush -> mark of how far -> ... -> mark gone -> log applied, sync
//	-> header with the top's DataWriteGuid and no log -> sync
//
// As long as f lacks the top's DataWriteGuid nothing takes it for the top.
func (im *Image) CollapseOn(ctx context.Context, f File, o CollapseOptions) error {
	c := &collapse{top: im.head(), o: o}
	if c.o.Layers == 0 {
		c.o.Layers = maxChainDepth
	} else if c.base = c.top.layer(o.Layers); c.base == c.top {
		c.base = nil // there are no more layers
	}
	dst, err := c.open(f)
	if err != nil {
		return fmt.Errorf("%s: collapse: %w", c.top.name, err)
	}
	c.dst = dst
	if guid := c.top.headers.current.DataWriteGUID; dst.headers.current.DataWriteGUID != guid { // otherwise it is done
		if err = c.run(ctx); err == nil {
			dst.lastGUID = guid
		}
	}
	if err := errors.Join(err, dst.Close()); err != nil {
		return fmt.Errorf("%s: collapse: %w", c.top.name, err)
	}
	return nil
}

type collapse struct {
	top, base, dst *Image
	o              CollapseOptions
	buf            []byte
}

// open creates the new image unless it is there, and opens it.
func (c *collapse) open(f File) (*Image, error) {
	size, err := f.Size()
	if err == nil && !c.top.opts.ReadOnly {
		err = fmt.Errorf("%s is open for writing: %w", c.top.name, ErrInvalid)
	}
	if err == nil && size == 0 {
		err = c.create(f)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	open := OpenOptions{GrowthStep: c.top.growthStep, omit: c.top.opts.omit, noTimers: c.top.opts.noTimers}
	if c.base != nil {
		open.rotating = &parentRef{im: c.base, users: 2} // one use is the top's
	}
	dst, err := Open(f, open)
	if err != nil {
		return nil, err
	}
	if a, b := dst.Size(), c.top.size.Load(); a != b || dst.metadata.params.HasParent != (c.base != nil) {
		return nil, errors.Join(fmt.Errorf("%s is not an unfinished collapse of this chain: remove it: %w", dst.name, ErrInvalid), dst.Close())
	}
	return dst, nil
}

func (c *collapse) create(f File) error {
	linkOf := func(im *Image) (*parentLink, error) { // the layer may be a head that was rotated away
		im.committing.Lock()
		defer im.committing.Unlock()
		return im.linkLocked()
	}
	link, err := linkOf(c.top)
	if err != nil {
		return err
	}
	if c.base != nil {
		below, err := linkOf(c.base)
		if err != nil {
			return err
		}
		if err := below.name(ChildOptions{RelativePath: c.o.RelativePath}); err != nil {
			return err
		}
		link.locator = below.locator
	}
	if c.o.BlockSize == 0 {
		c.o.BlockSize = c.top.blockSize
	}
	done, err := CreateOptions{
		Size: link.size, BlockSize: c.o.BlockSize,
		LogicalSectorSize: link.logicalSectorSize, PhysicalSectorSize: link.physicalSectorSize,
	}.complete()
	if err != nil {
		return err
	}
	return (&creation{f: f, o: done.Options, link: link}).run()
}

// run merges from where the mark says on.
func (c *collapse) run(ctx context.Context) error {
	c.buf = alignedBytes(ondisk.MiB)
	size := c.top.size.Load()
	done := int64(0)
	switch mark, err := c.dst.UserItem(progressItem); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case len(mark) == 8:
		done = min(max(0, int64(binary.LittleEndian.Uint64(mark))), size)
	}
	for done < size {
		end := min(size, done+cmp.Or(c.o.step, collapseStep))
		steps := []func() error{
			func() error { return copyLayers(ctx, c.dst, c.top, c.o.Layers, done, end, c.buf) },
			c.dst.Flush,
			func() error { return c.mark(end) },
		}
		if c.dst.opts.omit.has(orderFlushThenMark) {
			slices.Reverse(steps)
		}
		for _, step := range steps {
			if err := step(); err != nil {
				return err
			}
		}
		done = end
		if c.o.Progress != nil {
			if err := c.o.Progress(done, size); err != nil {
				return err
			}
		}
	}
	if err := c.dst.DeleteUserItem(progressItem); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// mark says, durably, from where to go on.
func (c *collapse) mark(done int64) error {
	return c.dst.SetUserItem(progressItem, binary.LittleEndian.AppendUint64(nil, uint64(done)), false)
}

// copyLayers makes dst show, in a range of the disk, what the upper layers of
// a chain say. What none of them says anything of is left as it is. All of it
// may be done again.
func copyLayers(ctx context.Context, dst, top *Image, layers int, off, end int64, buf []byte) error {
	for off < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		at, known, err := top.upper(layers, off, min(end-off, int64(len(buf))))
		if err != nil {
			return err
		}
		switch {
		case !known:
		case at.layer == nil:
			err = dst.WriteZeroes(off, at.n)
		default:
			err = copyPiece(dst, at, off, buf[:at.n])
		}
		if err != nil {
			return err
		}
		off += at.n
	}
	return nil
}

func copyPiece(dst *Image, from place, off int64, buf []byte) error {
	if _, err := from.layer.readPlace(buf, from.off); err != nil {
		return err
	}
	if allZero(buf) {
		return dst.WriteZeroes(off, from.n) // nothing where it reads zero already
	}
	_, err := dst.WriteAt(buf, off)
	return err
}

// upper is find in the first so many layers, the image itself being the first;
// known is false where none of them says anything.
func (im *Image) upper(layers int, off, n int64) (p place, known bool, err error) {
	pin := im.pins.enter()
	defer im.pins.leave(pin)
	p.n = n
	for i := range layers {
		layer := im.layer(i)
		if i > 0 && layer == im {
			return p, false, nil // that was the last
		}
		size := layer.size.Load()
		if off >= size {
			return place{n: p.n}, true, nil
		}
		var decided bool
		p, decided, err = layer.ownPlace(layer.bat.Load(), off, min(p.n, size-off))
		if err != nil || decided {
			return p, true, err
		}
	}
	return p, false, nil
}
