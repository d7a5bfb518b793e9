package vhdx

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/deathpoint"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
)

// activeLog finds what a dirty log asks for and refuses a log that cannot be
// replayed (I-LOG-2, I-LOG-3).
func (im *Image) activeLog() (*logReader, sequence, error) {
	h := im.headers.current
	l := newLogReader(im.f, h)
	s, ok, err := l.active()
	l.release()
	if err != nil {
		return nil, s, err
	}
	if !ok {
		return nil, s, corrupt(im.f, "log", l.offset, fmt.Errorf("log GUID %v is set, but no valid sequence of entries carries it: what it held is lost; restore the image from a backup", h.LogGUID))
	}
	if size := uint64(im.fileEnd); size < s.head.FlushedFileOffset {
		return nil, s, corrupt(im.f, "log entry", l.offset+int64(s.positions[len(s.positions)-1]),
			fmt.Errorf("the file was at least %#x bytes long when the entry was written and is %#x now: it has been truncated; restore it from a backup", s.head.FlushedFileOffset, size))
	}
	if s.head.LastFileOffset > maxFileSize {
		return nil, s, corrupt(im.f, "log entry", l.offset, fmt.Errorf("LastFileOffset %#x is beyond any file", s.head.LastFileOffset))
	}
	return l, s, nil
}

// each calls apply with every descriptor of the active sequence, from the entry
// its head's Tail names to the head, and with where in the file its data sector
// lies.
func (im *Image) each(l *logReader, s sequence, apply func(d ondisk.LogDescriptor, sector int64) error) error {
	for _, pos := range s.positions[s.tail:] {
		e, err := l.read(pos, l.found[pos].EntryLength)
		if err != nil {
			return corrupt(im.f, "log entry", l.offset+int64(pos), err)
		}
		im.replayed.Entries++
		data := pos + uint32(ondisk.LogEntryLength(len(e.Descriptors), 0))
		for _, d := range e.Descriptors {
			if d.FileOffset+d.Length > maxFileSize {
				return corrupt(im.f, "log entry", l.offset+int64(pos), fmt.Errorf("a descriptor reaches %#x, beyond any file", d.FileOffset+d.Length))
			}
			if d.Zero {
				im.replayed.Zeroed += int64(d.Length)
			} else {
				im.replayed.Pages++
			}
			if err := apply(d, l.offset+int64(data%l.length)); err != nil {
				return err
			}
			if !d.Zero {
				data += ondisk.LogSectorSize
			}
		}
	}
	return nil
}

// replay applies a dirty log to the file. Order: new FileWriteGuid, sync,
// pages and size, sync, LogGuid zero, sync. Interrupted anywhere, it starts
// again at the next open with the same result. DataWriteGuid stays: what a
// reader of the virtual disk sees does not change (I-GUID-2).
func (im *Image) replay() error {
	l, s, err := im.activeLog()
	if err != nil {
		return err
	}
	if err := im.renewFileWriteGUID(); err != nil {
		return err
	}
	deathpoint.Reach(deathpoint.ReplayBegun)
	page := alignedBytes(ondisk.PageSize)
	apply := func(d ondisk.LogDescriptor, _ int64) error { return im.applyDescriptor(d, page) }
	if err := im.each(l, s, apply); err != nil {
		return err
	}
	if last := int64(s.head.LastFileOffset); last > im.fileEnd {
		if err := im.f.Truncate(last); err != nil {
			return err
		}
		im.fileEnd = last
	}
	if err := im.sync(syncReplay); err != nil {
		return err
	}
	deathpoint.Reach(deathpoint.ReplayApplied)
	return im.clearLogGUID(syncReplayClear)
}

func (im *Image) applyDescriptor(d ondisk.LogDescriptor, page []byte) error {
	off, end := int64(d.FileOffset), int64(d.FileOffset+d.Length)
	if !d.Zero {
		copy(page, d.Data)
		if err := im.writeMetadata(page, off); err != nil {
			return err
		}
	} else if err := im.zeroFile(off, min(end, im.fileEnd)); err != nil {
		return err
	}
	if end > im.fileEnd {
		if err := im.f.Truncate(end); err != nil {
			return err
		}
		im.fileEnd = end
	}
	return nil
}

// zeroFile makes [off, end) of the file read zero, by punching where it can.
func (im *Image) zeroFile(off, end int64) error {
	if off >= end || im.punch(extent{off, end - off}) == nil {
		return nil
	}
	return im.writeZeros(off, end)
}

// zeros is written where a range must read zero, and compared with. Nothing
// ever changes it.
var zeros = alignedBytes(1 << 20)

// overlayFile is a file with a log applied in memory, for read-only opens.
type overlayFile struct {
	File
	size  int64
	pages map[int64]loggedPage // by offset; newer than zeroed
	zero  []extent
}

// loggedPage is where the log holds a page. It stays there: a log of a GiB
// would take a GiB of memory.
type loggedPage struct {
	sector int64    // the data sector's place in the file
	ends   [12]byte // the page's first 8 bytes and its last 4, which the sector lacks
}

// page reads a page from the log into b.
func (o *overlayFile) page(b []byte, at loggedPage) error {
	if err := readFull(o.File, b, at.sector); err != nil {
		return err
	}
	copy(b, at.ends[:8])
	copy(b[ondisk.PageSize-4:], at.ends[8:])
	return nil
}

// maxOverlayZeros bounds the work that a hostile log can ask of each read.
const maxOverlayZeros = 1024

// overlay puts the image on its file with the log applied.
func (im *Image) overlay() error {
	l, s, err := im.activeLog()
	if err != nil {
		return err
	}
	return im.overlayOf(l, s)
}

func (im *Image) overlayOf(l *logReader, s sequence) error {
	o := &overlayFile{File: im.f, size: im.fileEnd, pages: map[int64]loggedPage{}}
	err := im.each(l, s, func(d ondisk.LogDescriptor, sector int64) error {
		off, end := int64(d.FileOffset), int64(d.FileOffset+d.Length)
		o.size = max(o.size, end)
		if !d.Zero {
			p := loggedPage{sector: sector}
			copy(p.ends[:8], d.Data)
			copy(p.ends[8:], d.Data[ondisk.PageSize-4:])
			o.pages[off] = p
			return nil
		}
		if len(o.zero) == maxOverlayZeros {
			return fmt.Errorf("%s: more than %d zero descriptors in the log: open it writable to replay them: %w", im.name, maxOverlayZeros, ErrUnsupported)
		}
		maps.DeleteFunc(o.pages, func(at int64, _ loggedPage) bool { return off <= at && at < end })
		o.zero = append(o.zero, extent{off, end - off})
		return nil
	})
	if err != nil {
		return err
	}
	o.size = max(o.size, int64(s.head.LastFileOffset))
	im.f, im.fileEnd, im.overlaid = o, o.size, true
	return nil
}

func (o *overlayFile) Size() (int64, error) { return o.size, nil }

// ReadAt reads the file, then lays the log over it. Beyond the file's own end,
// up to the overlay's, it reads zero.
func (o *overlayFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := o.File.ReadAt(p, off)
	if want := min(int64(len(p)), o.size-off); int64(n) < want && errors.Is(err, io.EOF) {
		clear(p[n:want])
		n, err = int(want), nil
	}
	if n < len(p) && err == nil {
		err = io.EOF
	}
	for _, e := range o.zero {
		if lo, hi := max(e.off, off), min(e.end(), off+int64(n)); lo < hi {
			clear(p[lo-off : hi-off])
		}
	}
	for at := off &^ (ondisk.PageSize - 1); at < off+int64(n); at += ondisk.PageSize {
		if where, ok := o.pages[at]; ok {
			if at >= off && at+ondisk.PageSize <= off+int64(n) {
				if err := o.page(p[at-off:][:ondisk.PageSize], where); err != nil {
					return 0, err
				}
				continue
			}
			page := alignedBytes(ondisk.PageSize)
			if err := o.page(page, where); err != nil {
				return 0, err
			}
			lo, hi := max(at, off), min(at+ondisk.PageSize, off+int64(n))
			copy(p[lo-off:hi-off], page[lo-at:])
		}
	}
	return n, err
}

// touches reports whether the log changed anything in [off, end).
func (o *overlayFile) touches(off, end int64) bool {
	for at := range o.pages {
		if off <= at && at < end {
			return true
		}
	}
	return slices.ContainsFunc(o.zero, func(e extent) bool { return e.off < end && off < e.end() })
}
