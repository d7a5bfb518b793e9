package vhdx_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

// makeImage creates the image that a workload uses, and its session.
func (h *harness) makeImage(kind *workload) (*vhdxtest.File, *session, error) {
	file := vhdxtest.NewFile(fmt.Sprintf("%s-%d.vhdx", kind.name, h.seed))
	if _, err := vhdx.CreateOn(file, kind.create); err != nil {
		return nil, nil, fmt.Errorf("create: %w", err)
	}
	model := vhdxtest.NewModel(h.seed, kind.create.Size)
	seen := vhdxtest.NewObserved(kind.create.Size)
	if kind.child != nil {
		var err error
		if file, model, seen, err = h.makeChild(kind, file, model); err != nil {
			return nil, nil, fmt.Errorf("create a child: %w", err)
		}
	}
	s, err := newSession(file.Clone(), model, seen)
	return file, s, err
}

// makeChild writes something to each of the workload's blocks in the parent,
// and creates its child. What the child shows is the start of the model.
func (h *harness) makeChild(kind *workload, parent *vhdxtest.File, model *vhdxtest.Model) (*vhdxtest.File, *vhdxtest.Model, *vhdxtest.Observed, error) {
	im, err := vhdx.Open(parent, vhdx.OpenOptions{GrowthStep: kind.growth})
	if err != nil {
		return nil, nil, nil, err
	}
	r := rand.New(rand.NewPCG(h.seed, 2))
	for _, block := range kind.blocks {
		off := min(block*kind.blockSize()+r.Int64N(8)*4096, im.Size()-32*kib)
		if kind.fills != nil {
			off = (block + 1) * kind.blockSize() // the first fill goes there
		}
		c := model.Write(off, 512*(1+r.Int64N(64)))
		_, err := im.WriteAt(c.Data, off)
		c.Done(err)
	}
	flushed := model.Flush()
	err = im.Close()
	flushed(err)
	if err != nil {
		return nil, nil, nil, err
	}
	h.opts.Parents = memParents{parent.Name(): parent.Clone()}
	parent.Reopen()
	if im, err = vhdx.Open(parent, vhdx.OpenOptions{ReadOnly: true}); err != nil {
		return nil, nil, nil, err
	}
	child := vhdxtest.NewFile("child of " + parent.Name())
	o := *kind.child
	o.RelativePath = parent.Name()
	made, err := im.CreateChildOn(child, o)
	if err := errors.Join(err, im.Close()); err != nil {
		return nil, nil, nil, err
	}
	if size := made.Options.Size; size != kind.create.Size { // what the parent has beyond it is not the child's
		model.Resize(size).Done(nil)
	}
	if kind.stale {
		err = staleBits(child, kind.blocks)
	}
	err = errors.Join(err, leaveBlocks(child, kind.foreign))
	ro := h.opts
	ro.ReadOnly = true
	im, err2 := vhdx.Open(child.Clone(), ro)
	if err := errors.Join(err, err2); err != nil {
		return nil, nil, nil, err
	}
	seen, _, err := observe(im, model, model.Touched(readSize))
	return child, model, seen, errors.Join(err, im.Close())
}

// leaveBlocks puts blocks full of rubbish into a table, behind the end of the
// disk: nothing reads them.
func leaveBlocks(file *vhdxtest.File, blocks []int64) error {
	l, err := vhdxtest.ReadLayout(file)
	if err != nil {
		return err
	}
	ratio := l.SectorSize << 23 / l.BlockSize
	place := l.End()
	for _, block := range blocks {
		entry := binary.LittleEndian.AppendUint64(nil, uint64(place)|6)
		_, err := file.WriteAt(bytes.Repeat([]byte{0xdd}, int(l.BlockSize)), place)
		_, err2 := file.WriteAt(entry, l.BAT.Off+8*(block+block/ratio))
		if err := errors.Join(err, err2); err != nil {
			return err
		}
		place += l.BlockSize
	}
	return file.Sync()
}

// staleBits gives each chunk a sector bitmap full of ones, or a few where no
// block is used, which mean nothing as long as no block is partially present.
func staleBits(file *vhdxtest.File, used []int64) error {
	l, err := vhdxtest.ReadLayout(file)
	if err != nil {
		return err
	}
	ratio := l.SectorSize << 23 / l.BlockSize
	ones := bytes.Repeat([]byte{0xff}, int(mib))
	place := l.End()
	for chunk := range (l.VirtualSize + ratio*l.BlockSize - 1) / (ratio * l.BlockSize) {
		entry := binary.LittleEndian.AppendUint64(nil, uint64(place)|6)
		bits := ones
		if !slices.ContainsFunc(used, func(block int64) bool { return block/ratio == chunk }) {
			bits = ones[:4*kib] // nothing will be there
		}
		_, err := file.WriteAt(bits, place)
		_, err2 := file.WriteAt(entry, l.BAT.Off+8*((chunk+1)*ratio+chunk))
		if err := errors.Join(err, err2); err != nil {
			return err
		}
		place += mib
	}
	return errors.Join(file.Truncate(place), file.Sync())
}
