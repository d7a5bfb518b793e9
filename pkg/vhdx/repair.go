package vhdx

import (
	"context"
	"errors"
	"fmt"
	"reflect"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// RepairOptions says how to repair. The zero value repairs all it can.
type RepairOptions struct {
	// DryRun changes nothing: the report's findings say what would be done.
	DryRun bool
	// PerCode, Parents and Progress are those of [CheckOptions].
	PerCode  int
	Parents  ParentOpener
	Progress func(done, total int64) error
	// Confirm, if set, is given what was found and what will be done about it,
	// before anything is changed. Its error ends the repair.
	Confirm func(*Report) error

	omit barriers // test switch: barriers that are left out
}

// Repair mends in f what can be mended without guessing, and says in the report
// what it found ([Report.Findings]), what it did ([Report.Done]) and what is
// left ([Report.After]; nil where nothing was to be done). f stays open.
//
// It never destroys the only copy of anything: damage with more than one way
// out stays as it is, a block that shares its place with another gets a copy of
// what both show, and unused space is freed only where nothing was damaged, so
// that another Repair frees what this one leaves. DataWriteGuid stays, for no reader of the disk sees a change.
//
// It works in stages, each followed by a new check. Write orders:
//
//	signature   identifier → sync
//	log         as at open: FileWriteGuid → sync → pages, size → sync → LogGuid zero → sync
//	log's place FileWriteGuid → sync → new space → sync → a header that names it → sync → the other header → sync
//	headers     the bad one → sync → the other one → sync
//	tables, BAT and bitmaps
//	            FileWriteGuid → sync → copies of blocks in new space, first log entry → sync
//	            → LogGuid → sync → the other header, log entries → sync → apply → sync
//	            → LogGuid zero → sync → the other header → sync
//	unused space FileWriteGuid → sync → punch, truncate, the other header → sync
//
// Cut anywhere, it leaves an image that is no worse than before, shows what it
// showed, and is repaired by the next Repair.
func Repair(ctx context.Context, f File, o RepairOptions) (*Report, error) {
	c, err := checkFor(ctx, f, o)
	if err != nil {
		return c.r, err
	}
	first := c.r
	if c.r.Counts[SeverityUnsupported] > 0 {
		giveUp(first) // what is not understood may be what a repair would break
	}
	if first.Repairable() == 0 || o.DryRun {
		return first, nil
	}
	if o.Confirm != nil {
		if err := o.Confirm(first); err != nil {
			return first, err
		}
	}
	for range maxRounds {
		last := c.plan
		r := &repair{ctx: ctx, o: o, c: c, report: first}
		did, err := r.stage()
		if err != nil {
			return first, fmt.Errorf("repair %s: %w", f.Name(), err)
		}
		if !did {
			break
		}
		if c, err = checkFor(ctx, f, o); err != nil {
			return first, err
		}
		first.After = c.r
		if reflect.DeepEqual(last, c.plan) {
			return first, fmt.Errorf("repair %s: the same is found again after it was mended: is the medium sound?", f.Name())
		}
	}
	return first, nil
}

// maxRounds bounds the stages: an ordinary repair has three.
const maxRounds = 1000

func checkFor(ctx context.Context, f File, o RepairOptions) (*checker, error) {
	c := newChecker(ctx, f, CheckOptions{PerCode: o.PerCode, Parents: o.Parents, Progress: o.Progress})
	return c, c.run()
}

func giveUp(r *Report) {
	for i := range r.Findings {
		r.Findings[i].Repair = ""
	}
}

// repair is one stage of a Repair.
type repair struct {
	ctx    context.Context
	o      RepairOptions
	c      *checker // what has just been found
	report *Report
	im     *Image // never opened: what writes headers and log
	end    int64  // of the file and of all that lies in it, in whole MiB
}

// stage does what comes first of all that is to be done, if anything is.
func (r *repair) stage() (bool, error) {
	c, p := r.c, &r.c.plan
	r.im = &Image{f: c.raw, name: c.r.File, opts: OpenOptions{omit: r.o.omit}, headers: c.im.headers}
	size, err := c.raw.Size()
	if err != nil {
		return false, err
	}
	r.im.fileEnd = size
	r.end = roundUp(max(size, c.space.end, p.extend), ondisk.MiB)
	whole := c.r.Stopped == "" // nothing may lie where the check did not get to
	var do func() error
	switch {
	case c.r.Counts[SeverityUnsupported] > 0:
		return false, nil
	case p.identifier:
		do = r.identifier
	case p.replay:
		do = r.replay
	case p.headers:
		do = r.headers
	case !whole:
		return false, nil
	case p.moveLog:
		do = r.moveLog
	case p.tables, len(p.entries) > 0, len(p.copies) > 0, len(p.bitmaps) > 0, p.tablesApart && !c.r.Corrupt():
		do = r.structures
	case p.extend > 0, p.unaligned, !r.report.doubtful() && (len(p.gaps) > 0 || p.tail > 0):
		do = r.size
	default:
		return false, nil
	}
	return true, do()
}

// did takes down what was mended.
func (r *repair) did(n int, format string, args ...any) {
	r.report.Repaired += int64(n)
	r.report.Done = append(r.report.Done, fmt.Sprintf(format, args...))
}

// identifier writes the signature. The creator's name behind it stays.
func (r *repair) identifier() error {
	b := alignedBytes(ondisk.PageSize)
	if err := readFull(r.im.f, b, ondisk.IdentifierOffset); err != nil {
		return err
	}
	copy(b, ondisk.Signature)
	if err := r.im.writeMetadata(b, ondisk.IdentifierOffset); err != nil {
		return err
	}
	if err := r.im.sync(syncClosed); err != nil {
		return err
	}
	r.did(1, "wrote the file's signature again")
	return nil
}

func (r *repair) replay() error {
	if err := r.im.replay(); err != nil {
		return err
	}
	if err := r.im.sync(syncClosed); err != nil {
		return err
	}
	r.did(1, "replayed the log: %s", r.im.replayed.describe())
	return nil
}

// headers writes both slots, the bad one first.
func (r *repair) headers() error {
	if err := r.im.renewFileWriteGUID(); err != nil {
		return err
	}
	if err := r.finish(); err != nil {
		return err
	}
	r.did(1, "wrote the bad header anew from the other one")
	return nil
}

// finish gives the other header slot the same content, durably.
func (r *repair) finish() error {
	if err := r.im.copyHeader(); err != nil {
		return err
	}
	return r.im.syncHeader(syncClosed)
}

// moveLog gives an empty log new space at the file's end. What shares the old
// place with it has that for itself from then on.
func (r *repair) moveLog() error {
	length := int64(r.im.headers.current.LogLength)
	if length < ondisk.MiB || length%ondisk.MiB != 0 || length > ondisk.MaxLogLength {
		length = ondisk.MiB
	}
	if err := r.im.renewFileWriteGUID(); err != nil {
		return err
	}
	if err := r.grow(r.end + length); err != nil {
		return err
	}
	if err := r.allocate(r.end, length); err != nil {
		return r.shrink(err)
	}
	if err := r.im.sync(syncRepairSpace); err != nil {
		return err
	}
	if err := r.im.writeHeader(func(h *ondisk.Header) {
		h.LogOffset, h.LogLength, h.LogGUID, h.LogVersion = uint64(r.end), uint32(length), ondisk.GUID{}, 0
	}); err != nil {
		return err
	}
	if err := r.im.syncHeader(syncLogGUID); err != nil {
		return err
	}
	if err := r.finish(); err != nil {
		return err
	}
	r.did(1, "gave the log a new place at %#x", r.end)
	return nil
}

// grow extends the file. Its old end is what shrink goes back to.
func (r *repair) grow(size int64) error {
	if size > maxFileSize {
		return fmt.Errorf("grow the file to %#x: at most %#x are accepted: %w", size, int64(maxFileSize), ErrUnsupported)
	}
	return r.im.f.Truncate(size)
}

// shrink gives up space that nothing refers to yet.
func (r *repair) shrink(cause error) error {
	return errors.Join(cause, r.im.f.Truncate(max(r.im.fileEnd, r.c.plan.extend)))
}

func (r *repair) allocate(off, length int64) error {
	a, ok := r.im.f.(Allocator)
	if !ok || length == 0 {
		return nil
	}
	if err := a.Allocate(off, length); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("reserve %#x bytes at %#x: %w", length, off, err)
	}
	return nil
}

// size extends a file that ends inside a structure, or frees what nothing
// refers to.
func (r *repair) size() error {
	p := &r.c.plan
	if err := r.im.renewFileWriteGUID(); err != nil {
		return err
	}
	switch {
	case p.extend > 0, p.unaligned:
		if err := r.grow(r.end); err != nil {
			return err
		}
		r.did(1, "extended the file to %#x bytes", r.end)
		return r.finish()
	}
	for _, e := range p.gaps {
		if err := r.im.zeroFile(e.off, e.end()); err != nil {
			return err
		}
	}
	if len(p.gaps) > 0 {
		r.did(len(p.gaps), "freed %s of unused space", count(len(p.gaps), "range", "ranges"))
	}
	if p.tail > 0 {
		if err := r.im.f.Truncate(p.tail); err != nil {
			return err
		}
		r.did(1, "cut off unused space at the file's end, now at %#x", p.tail)
	}
	return r.finish()
}

// Replay replays the log of the image in f, of any kind and whatever else may
// be wrong with it, and changes nothing where the log is clean. f stays open.
// Open does the same, and more.
func Replay(f File) (ReplayInfo, error) {
	size, err := f.Size()
	if err != nil {
		return ReplayInfo{}, err
	}
	im := &Image{f: f, name: f.Name(), fileEnd: size}
	for _, step := range []func() error{im.loadIdentifier, im.loadHeaders} {
		if err := step(); err != nil {
			return ReplayInfo{}, err
		}
	}
	if im.headers.current.LogGUID.IsZero() {
		return ReplayInfo{}, nil
	}
	if err := im.replay(); err != nil {
		return ReplayInfo{}, err
	}
	return im.replayed, im.sync(syncClosed)
}
