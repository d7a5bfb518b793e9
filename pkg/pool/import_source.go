package pool

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/fsx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// source is a file that is being imported, locked.
type source struct {
	file *os.File
	path string // absolute, without symlinks
	info vhdx.Info
	link *vhdx.ParentLink // nil: it stands alone
}

func (s *source) Close() { unlockAndClose(s.file) }

// unlockAndClose does not leave the lock to the closing: a child that this
// process has begun to start shares it until its exec.
func unlockAndClose(f *os.File) {
	_ = fsx.Unlock(f, fsx.Whole)
	f.Close()
}

// openSource opens a file, locks it, and refuses what is damaged.
func openSource(ctx context.Context, file string) (*source, error) {
	fi, err := os.Lstat(file)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: it is a %s, no regular file", ErrInvalid, fsx.KindOf(fi.Mode()))
	}
	f, err := os.OpenFile(file, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	s := &source{file: f, path: file}
	if err = s.inspect(ctx); err == nil {
		err = stillNamed(file, f)
	}
	if err != nil {
		unlockAndClose(f)
		return nil, err
	}
	return s, nil
}

// stillNamed is the second look, under the lock: another import may have come
// between, and have made the file a volume's image.
func stillNamed(file string, f *os.File) error {
	mine, err := f.Stat()
	if err != nil {
		return err
	}
	now, err := os.Lstat(file)
	if err == nil && !os.SameFile(now, mine) {
		err = fmt.Errorf("%w: it is another file by now", ErrBusy)
	}
	return err
}

// inspect locks the file, through its description alone, and reads what it is.
func (s *source) inspect(ctx context.Context) error {
	if err := fsx.TryLock(s.file, fsx.Whole, true); errors.Is(err, fsx.ErrLocked) {
		return fmt.Errorf("%w: another process has it open", ErrInUse)
	} else if err != nil {
		return err
	}
	osf, err := again(s.file, vhdx.FileOptions{NoLock: true})
	if err != nil {
		return err
	}
	report, err := vhdx.Check(ctx, osf, vhdx.CheckOptions{PerCode: 1})
	if worst, found := report.Worst(); err == nil && found && (report.Corrupt() || report.Counts[vhdx.SeverityUnsupported] > 0) {
		err = fmt.Errorf("%w: %v; see vhdxctl check", ErrInvalid, worst)
	}
	if err != nil {
		osf.Close()
		return err
	}
	// Its log, if there is one to replay, stays for whoever opens the volume.
	im, err := vhdx.Open(osf, vhdx.OpenOptions{ReadOnly: true, NoParents: true}) // closes osf, also when it fails
	if err != nil {
		return err
	}
	s.info, s.link = im.Info(), im.Layers()[0].Parent
	return im.Close()
}

// again is a file on the same description as f, which stays open and keeps its locks.
func again(f *os.File, o vhdx.FileOptions) (*vhdx.OSFile, error) {
	same, err := fsx.Dup(f)
	if err != nil {
		return nil, err
	}
	osf, err := vhdx.NewOSFile(same, o)
	if err != nil {
		same.Close()
		return nil, err
	}
	return osf, nil
}
