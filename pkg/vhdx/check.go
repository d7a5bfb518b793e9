package vhdx

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// CheckOptions says how to check. The zero value will do.
type CheckOptions struct {
	// PerCode is how many findings of each code are listed; the others are
	// counted alone. 0: 100.
	PerCode int
	// Parents opens what a differencing image refers to, as in [OpenOptions].
	// Nil: the chain is not checked.
	Parents ParentOpener
	// Progress, if set, is told how many bytes of the BAT have been checked.
	// Its error ends the check.
	Progress func(done, total int64) error
}

// Check looks for everything in f that breaks the format (MS-VHDX 8.0), also
// where the image does not open. Payload is not read, but for space that
// nothing refers to. A dirty log is applied in memory, and what it leads to is
// checked; f is not changed, and stays open.
//
// The error says that the file could not be checked ([ErrNotVHDX], I/O, the
// end of ctx); damage is no error. Memory: at most 64 MiB, whatever the size of the file
// and of its BAT, besides the pages of a dirty log.
func Check(ctx context.Context, f File, o CheckOptions) (*Report, error) {
	c := newChecker(ctx, f, o)
	return c.r, c.run()
}

// checker is a Check under way.
type checker struct {
	ctx context.Context
	raw File // as it is
	f   File // with the log applied, once that has been found
	o   CheckOptions
	r   *Report
	im  *Image // never opened: what reads headers and log

	table     ondisk.RegionTable
	tableAt   int64 // offset of the copy that counts
	bat       *ondisk.Region
	meta      metadata
	haveMeta  bool
	locator   *ondisk.ParentLocator // nil: none
	locatorAt int64
	geometry  ondisk.Geometry

	space  *spaceMap
	places structures
	plan   plan

	buf     []byte // of mib
	bufDone func()
}

func newChecker(ctx context.Context, f File, o CheckOptions) *checker {
	if o.PerCode == 0 {
		o.PerCode = 100
	}
	return &checker{
		ctx: ctx, raw: f, f: f, o: o,
		r:     &Report{File: f.Name(), Findings: []Finding{}, Counts: map[Severity]int64{}, perCode: map[Code]int{}},
		im:    &Image{f: f, name: f.Name(), opts: OpenOptions{ReadOnly: true}},
		space: new(spaceMap),
	}
}

// mib is a buffer for what is read and judged at once.
func (c *checker) mib() []byte {
	if c.buf == nil {
		c.buf, c.bufDone = borrowMiB()
	}
	return c.buf
}

// release ends the use of what is shared.
func (c *checker) release() {
	if c.buf != nil {
		c.bufDone()
		c.buf = nil
	}
}

// errStopped ends a check that cannot go on; Report.Stopped says why.
var errStopped = errors.New("stopped")

func (c *checker) run() error {
	defer c.release()
	size, err := c.f.Size()
	if err != nil {
		return err
	}
	if size > maxFileSize {
		return fmt.Errorf("%s: %#x bytes long, at most %#x are accepted: %w", c.r.File, size, int64(maxFileSize), ErrUnsupported)
	}
	c.r.FileSize, c.im.fileEnd = size, size
	for _, step := range []func() error{
		c.checkHead, c.checkLog, c.checkRegions, c.checkPlaces, c.checkMetadata, c.checkChain, c.checkBAT, c.checkSpace,
	} {
		if err := c.ctx.Err(); err != nil {
			return fmt.Errorf("check %s: %w", c.r.File, context.Cause(c.ctx))
		}
		if err := step(); err != nil {
			if errors.Is(err, errStopped) {
				return nil
			}
			return fmt.Errorf("check %s: %w", c.r.File, err)
		}
	}
	if c.r.doubtful() {
		c.keepLeaks()
	}
	return nil
}

// keepLeaks leaves unused space alone while something is damaged: it may be
// what a damaged entry should lead to, and the only copy of that.
func (c *checker) keepLeaks() {
	c.plan.gaps, c.plan.tail = nil, 0
	for i := range c.r.Findings {
		if f := &c.r.Findings[i]; f.Severity == SeverityLeak {
			f.Repair, f.Advice = "", "kept for now, since it may be what a damaged entry should lead to: repair again to free it"
		}
	}
}

// stop ends the check with a reason for the report.
func (c *checker) stop(format string, args ...any) error {
	c.r.Stopped = fmt.Sprintf(format, args...)
	return errStopped
}

// add takes a finding, unless there are enough of its code.
func (c *checker) add(f Finding) {
	if c.counted(f.Code, f.Severity) {
		return
	}
	c.r.Counts[f.Severity]++
	c.r.perCode[f.Code]++
	c.r.Findings = append(c.r.Findings, f)
}

// counted counts a finding that would not be listed, and reports whether it
// was one: of millions, texts that nobody sees are not made.
func (c *checker) counted(code Code, s Severity) bool {
	if c.r.perCode[code] < c.o.PerCode {
		return false
	}
	c.r.Counts[s]++
	c.r.Omitted++
	return true
}

const (
	restore = "restore the image from a backup"
	none    = -1 // Place.Index of what has none
)

// corrupt adds damage that nothing can repair without guessing.
func (c *checker) corrupt(code Code, p Place, format string, args ...any) {
	c.add(Finding{Code: code, Severity: SeverityCorrupt, Place: p, Text: fmt.Sprintf(format, args...), Advice: restore})
}

func (c *checker) note(code Code, p Place, format string, args ...any) {
	c.add(Finding{Code: code, Severity: SeverityNote, Place: p, Text: fmt.Sprintf(format, args...)})
}

// read reads all of p, or tells that the file ends there: false, nil.
func (c *checker) read(p []byte, off int64) (bool, error) {
	err := readFull(c.f, p, off)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return false, nil
	}
	return err == nil, err
}

// isFormat tells what the bytes say from what the medium says.
func isFormat(err error) bool {
	_, inBytes := errors.AsType[*ondisk.Error](err)
	return inBytes || errors.Is(err, ErrCorrupt) || errors.Is(err, ErrUnsupported) || errors.Is(err, io.ErrUnexpectedEOF)
}

// at returns a place without an index.
func at(structure string, off int64) Place { return Place{structure, off, none} }

// within moves a place to the field that an error of package ondisk names.
func within(p Place, err error) Place {
	if e, ok := errors.AsType[*ondisk.Error](err); ok {
		p.Offset += int64(e.Offset)
	}
	return p
}

// reason is what an error says without the structure that its Place names.
func reason(err error) string {
	if e, ok := errors.AsType[*ondisk.Error](err); ok {
		return e.Reason
	}
	if e, ok := errors.AsType[*CorruptError](err); ok {
		return e.Reason
	}
	return err.Error()
}
