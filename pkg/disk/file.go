package disk

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// File is a raw disk in a regular file.
type File struct {
	*vhdx.OSFile
	size atomic.Int64

	sizing sync.Mutex // held while the file gets another length
}

// OpenFile opens a raw disk in a regular file, under the lock that images are
// opened with. For reading it goes through the page cache if most of the file is there already.
func OpenFile(path string, writable bool) (*File, error) {
	flag := os.O_RDONLY
	if writable {
		flag = os.O_RDWR
	}
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		return nil, err
	}
	d, err := newFile(f, vhdx.FileOptions{ReadOnly: !writable, Buffered: !writable && cached(f)})
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return d, nil
}

func newFile(f *os.File, o vhdx.FileOptions) (*File, error) {
	of, err := vhdx.NewOSFile(f, o)
	if err != nil {
		return nil, err
	}
	size, err := of.Size()
	d := &File{OSFile: of}
	d.size.Store(size)
	return d, err
}

// cached reports whether more than half of a file's space is in the page cache.
func cached(f *os.File) bool {
	var c unix.Cachestat_t
	var st unix.Stat_t
	if unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{}, &c, 0) != nil || unix.Fstat(int(f.Fd()), &st) != nil {
		return false
	}
	return c.Cache*uint64(os.Getpagesize()) > uint64(st.Blocks)*512/2
}

// Size returns the size the file had when it was opened, or was given since.
func (f *File) Size() int64 { return f.size.Load() }

// NextData implements [Source].
func (f *File) NextData(off int64) (start, end int64, err error) {
	size := f.Size()
	if start, err = f.OSFile.NextData(off, size); err != nil || start >= size {
		return size, size, err
	}
	end, err = f.NextHole(start, size)
	return start, end, err
}

// WriteAt implements [Target]. Direct I/O writes whole pages: what that adds
// behind the end is cut off again.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.OSFile.WriteAt(p, off)
	if page := int64(os.Getpagesize()); err == nil && (off+int64(n)+page-1)/page*page > f.Size() {
		f.sizing.Lock()
		defer f.sizing.Unlock()
		err = f.Truncate(f.Size())
	}
	return n, err
}

// WriteZeroes implements [Target].
func (f *File) WriteZeroes(off, n int64) error {
	if err := f.PunchHole(off, n); !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return writeZeros(f, off, n)
}

// Flush implements [Target].
func (f *File) Flush() error { return f.Sync() }

// Resize makes the disk larger, with zeros, or smaller.
func (f *File) Resize(size int64) error {
	f.sizing.Lock()
	defer f.sizing.Unlock()
	if err := f.Truncate(size); err != nil {
		return err
	}
	f.size.Store(size)
	return nil
}

// writeZeros zeroes what cannot be zeroed in another way.
func writeZeros(t Target, off, n int64) error {
	for n > 0 {
		part := min(n, int64(len(zeros)))
		if _, err := t.WriteAt(zeros[:part], off); err != nil {
			return err
		}
		off, n = off+part, n-part
	}
	return nil
}

// NewFile is a raw disk that gets its name when it is complete (I-CPY-2).
type NewFile struct {
	*File
	draft *vhdx.Draft
}

// CreateFile begins a raw disk of size bytes that is to be called path.
func CreateFile(path string, size int64) (*NewFile, error) {
	draft, err := vhdx.NewDraft(path)
	if err != nil {
		return nil, err
	}
	dup, err := draft.Open()
	if err != nil {
		return nil, errors.Join(err, draft.Close())
	}
	f, err := newFile(dup, vhdx.FileOptions{NoLock: true})
	if err == nil {
		err = f.Resize(size)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create %s: %w", path, err), dup.Close(), draft.Close())
	}
	return &NewFile{f, draft}, nil
}

// Fill gives the file all of its space, so that it has no holes.
func (f *NewFile) Fill() error { return fill(f.draft.File(), f.Size()) }

// Fill gives a file all of its space, so that it has no holes, and syncs it.
func Fill(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil {
		err = fill(f, st.Size())
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func fill(f *os.File, size int64) error {
	if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
		return &os.PathError{Op: "allocate", Path: f.Name(), Err: err}
	}
	return nil
}

// Publish gives the file its name. With replace, whatever has that name now
// gives way.
func (f *NewFile) Publish(replace bool) error {
	err := f.Close()
	if err == nil {
		err = f.draft.Publish(replace)
	}
	return errors.Join(err, f.draft.Close())
}

// Abort leaves nothing.
func (f *NewFile) Abort() error { return errors.Join(f.Close(), f.draft.Close()) }
