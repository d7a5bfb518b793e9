package vhdx

import (
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// maxFileSize bounds the file: 256 TiB, four times the largest disk.
const maxFileSize = 1 << 48

const defaultGrowthStep = 64 * ondisk.MiB

// OpenPath opens the image at path under a lock on the description that all
// its I/O uses: exclusive when writable, shared when read-only ([ErrInUse]).
func OpenPath(path string, o OpenOptions) (*Image, error) {
	flag := os.O_RDWR
	if o.ReadOnly {
		flag = os.O_RDONLY
	}
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		return nil, err
	}
	of, err := NewOSFile(f, FileOptions{ReadOnly: o.ReadOnly})
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return Open(of, o)
}

// Open opens the image in f and takes f over: Close closes it, and so does a
// failed Open.
//
// A dirty log is replayed to disk, or applied in memory when o.ReadOnly. A
// writable open changes nothing else until the first write.
func Open(f File, o OpenOptions) (*Image, error) {
	im := &Image{f: f, name: f.Name(), opts: o, pins: new(pins)}
	if err := im.open(); err != nil {
		im.background.Wait()
		return nil, errors.Join(err, f.Close(), im.releaseChain())
	}
	return im, nil
}

func (im *Image) open() error {
	if err := im.openHead(); err != nil {
		return err
	}
	im.blockSize = int64(im.metadata.params.BlockSize)
	im.blockShift = uint(bits.TrailingZeros32(im.metadata.params.BlockSize))
	im.size.Store(im.metadata.virtualSize)
	if im.metadata.params.LeaveBlocksAllocated {
		im.fixedEnd = im.fileEnd
	}
	if err := im.loadBAT(); err != nil {
		return err
	}
	if err := im.openChain(); err != nil {
		return err
	}
	return im.resume()
}

// openHead reads what leads to the BAT.
func (im *Image) openHead() error {
	size, err := im.f.Size()
	if err != nil {
		return err
	}
	if size > maxFileSize {
		return fmt.Errorf("%s: %#x bytes long, at most %#x are accepted: %w", im.name, size, int64(maxFileSize), ErrUnsupported)
	}
	if im.opts.NoParents && !im.opts.ReadOnly {
		return fmt.Errorf("%s: a writable open without its parents: %w", im.name, ErrInvalid)
	}
	im.fileEnd = size
	im.growthStep = roundUp(max(im.opts.GrowthStep, 0), ondisk.MiB)
	if im.growthStep == 0 {
		im.growthStep = defaultGrowthStep
	}
	if err := im.loadIdentifier(); err != nil {
		return err
	}
	if err := im.loadHeaders(); err != nil {
		return err
	}
	if err := im.openJournal(); err != nil {
		return err
	}
	if err := im.openLog(); err != nil {
		return err
	}
	if err := im.loadRegions(); err != nil {
		return err
	}
	im.metadata, err = loadMetadata(im.f, im.regions.metadata)
	return err
}

func (im *Image) loadIdentifier() error {
	b := make([]byte, ondisk.IdentifierSize)
	err := readFull(im.f, b, ondisk.IdentifierOffset)
	if err == nil {
		im.identifier, err = ondisk.DecodeFileIdentifier(b)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, ondisk.ErrSignature) {
		return fmt.Errorf("%s: %w: %w", im.name, ErrNotVHDX, err)
	}
	return err
}

// openLog replays or overlays a dirty log.
func (im *Image) openLog() error {
	h := im.headers.current
	switch {
	case h.LogGUID.IsZero():
		return nil
	case im.opts.RefuseDirty:
		return fmt.Errorf("%s: %w; to replay it, run: vhdxctl check -r all '%s'", im.name, ErrLogReplayRequired, im.name)
	case im.opts.ReadOnly:
		return im.overlay()
	}
	began := time.Now()
	err := im.replay()
	im.replayed.Took = time.Since(began)
	return err
}

// regions is what the region table says.
type regions struct {
	table    ondisk.RegionTable
	bat      ondisk.Region
	metadata ondisk.Region
}

// loadRegions reads copy 1 of the region table, or copy 2 where 1 is bad.
func (im *Image) loadRegions() error {
	room, done := borrowMiB()
	defer done()
	buf := room[:ondisk.RegionTableSize]
	var errs [2]error
	for i, off := range []int64{ondisk.RegionTable1Offset, ondisk.RegionTable2Offset} {
		if errs[i] = readFull(im.f, buf, off); errs[i] != nil {
			continue
		}
		table, err := ondisk.DecodeRegionTable(buf)
		if err == nil {
			im.regions.table = table
			return im.findRegions(off)
		}
		errs[i] = err
	}
	return corrupt(im.f, "region table", ondisk.RegionTable1Offset, fmt.Errorf("both copies are bad: first: %w; second: %w", errs[0], errs[1]))
}

func (im *Image) findRegions(at int64) error {
	r := &im.regions
	var bat, metadata bool
	for _, e := range r.table.Regions {
		switch {
		case e.ID == ondisk.RegionBAT:
			r.bat, bat = e, true
		case e.ID == ondisk.RegionMetadata:
			r.metadata, metadata = e, true
		case e.Required:
			return fmt.Errorf("%s: required region %v is unknown: %w", im.name, e.ID, ErrUnsupported)
		}
	}
	if !bat || !metadata {
		return corrupt(im.f, "region table", at, errors.New("it names no BAT or no metadata region"))
	}
	return nil
}

// loadBAT reads the table, finds every overlap in the file and notes what
// space is free.
func (im *Image) loadBAT() error {
	g, err := im.tableGeometry()
	if err != nil {
		return err
	}
	r := im.regions.bat
	layout, err := im.newLayout()
	if err != nil {
		return err
	}
	b := newBAT(g, int64(r.Offset), int64(r.Length))
	if err := im.readEntries(b, layout); err != nil {
		return err
	}
	im.space.pending, im.space.bitmaps, im.space.dirtyBits = map[int64]*claim{}, map[int64]int64{}, map[int64]struct{}{}
	if err := im.inherit(b, layout); err != nil {
		return err
	}
	if err := im.checkBitmaps(b); err != nil {
		return err
	}
	im.bat.Store(b)
	if !im.opts.ReadOnly {
		im.unreferenced, im.space.next = layout.free()
	}
	if o, ok := im.f.(*overlayFile); ok {
		return im.checkOverlay(o, b)
	}
	return nil
}

// tableGeometry is that of the table, all of which is in the file.
func (im *Image) tableGeometry() (ondisk.Geometry, error) {
	r := im.regions.bat
	g := im.metadata.geometry(im.metadata.virtualSize)
	if need := g.Entries() * ondisk.BATEntrySize; need > int64(r.Length) {
		return g, corrupt(im.f, "region table", ondisk.RegionTable1Offset, fmt.Errorf("the BAT region has %#x bytes and a disk of %#x needs %#x", r.Length, g.VirtualSize, need))
	}
	if need := roundUp(g.Entries()*ondisk.BATEntrySize, ondisk.PageSize); int64(r.Offset)+need > im.fileEnd {
		return g, corrupt(im.f, "BAT", int64(r.Offset), fmt.Errorf("the file of %#x bytes ends inside it", im.fileEnd))
	}
	return g, nil
}

// checkOverlay refuses a log that changes payload: reads of payload would have
// to look into it, and no writer may log payload (MS-VHDX 2.3).
func (im *Image) checkOverlay(o *overlayFile, b *bat) error {
	for block := range b.geometry.PayloadBlocks() {
		e := b.payload(block)
		if present(e) && o.touches(e.Offset(), e.Offset()+im.blockSize) {
			return corrupt(im.f, "log", int64(im.headers.current.LogOffset), fmt.Errorf("it changes payload block %d", block))
		}
	}
	return nil
}

// checkBitmaps: a block that is partially present needs its chunk's sector bitmap.
func (im *Image) checkBitmaps(b *bat) error {
	if !b.geometry.HasParent {
		return nil
	}
	for block := range b.geometry.PayloadBlocks() {
		if b.payload(block).State() != ondisk.BlockPartiallyPresent {
			continue
		}
		index := b.geometry.BitmapIndex(block / b.geometry.ChunkRatio())
		if b.at(index).State() != ondisk.BitmapPresent {
			return corrupt(im.f, fmt.Sprintf("BAT entry %d", index), b.offset+index*ondisk.BATEntrySize,
				fmt.Errorf("no sector bitmap, and payload block %d is partially present", block))
		}
	}
	return nil
}

// newLayout marks what is not block space: header section, log, regions.
func (im *Image) newLayout() (*layout, error) {
	l := newLayout(im.fileEnd)
	h := im.headers.current
	if h.LogLength > 0 {
		if err := l.mark(int64(h.LogOffset), int64(h.LogLength)); err != nil {
			return nil, corrupt(im.f, "header", headerOffsets[im.headers.slot], fmt.Errorf("log: %w", err))
		}
	}
	for _, r := range im.regions.table.Regions {
		if err := l.mark(int64(r.Offset), int64(r.Length)); err != nil {
			return nil, corrupt(im.f, "region table", ondisk.RegionTable1Offset, fmt.Errorf("region %v: %w", r.ID, err))
		}
	}
	return l, nil
}

// Info describes the image.
func (im *Image) Info() Info {
	im = im.lockHead()
	defer im.committing.Unlock()
	return im.infoLocked()
}

// infoLocked: caller holds committing.
func (im *Image) infoLocked() Info {
	b := im.bat.Load()
	m := &im.metadata
	info := Info{
		File: im.name, Creator: im.identifier.Creator,
		VirtualSize: im.size.Load(), BlockSize: im.blockSize,
		LogicalSectorSize: m.logicalSectorSize, PhysicalSectorSize: m.physicalSectorSize,
		Fixed: m.params.LeaveBlocksAllocated, HasParent: m.params.HasParent,
		LogSize: int64(im.headers.current.LogLength), DiskID: m.diskID.String(),
		FileWriteGUID: im.headers.current.FileWriteGUID.String(),
		DataWriteGUID: im.headers.current.DataWriteGUID.String(),
		PayloadBlocks: b.geometry.PayloadBlocks(), Replay: im.replayed,
	}
	info.FileSize, _ = im.f.Size() // the description of an open image must not fail
	for block := range info.PayloadBlocks {
		if present(b.payload(block)) {
			info.AllocatedBlocks++
		}
	}
	return info
}

// readFull reads all of p or fails; the end of the file is io.ErrUnexpectedEOF.
func readFull(f File, p []byte, off int64) error {
	n, err := f.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil, errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	}
	return err
}

func corrupt(f File, structure string, off int64, reason error) error {
	return &CorruptError{File: f.Name(), Structure: structure, Offset: off, Reason: reason.Error()}
}

// corruptRead tells a file that ends too early from one that cannot be read.
func corruptRead(f File, structure string, off int64, err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return corrupt(f, structure, off, errors.New("the file ends inside it"))
	}
	return fmt.Errorf("%s: read %s at %#x: %w", f.Name(), structure, off, err)
}
