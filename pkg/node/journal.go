package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/fsx"
)

// How long a new process waits for the end of the old one, and of its helpers.
const (
	lockPatience   = 5 * time.Second
	orphanPatience = 10 * time.Second
)

// Directories of the state directory.
const (
	entriesDir  = "entries"
	setAsideDir = "set-aside"
	tempDir     = "tmp"
)

// journal is a directory of entries, one file per volume, each replaced as a
// whole and durably.
type journal struct {
	tree *fsx.Tree
	lock *os.File
	// orphans is open, and shared-locked, in this process and in every helper.
	orphans *os.File
}

// openJournal opens or makes the journal in stateDir and locks it: tearing
// down what a living process serves would cut off its pods.
func openJournal(ctx context.Context, stateDir string, locked bool) (*journal, error) {
	j := &journal{}
	var err error
	if !locked {
		if j.lock, err = LockState(ctx, stateDir); err != nil {
			return nil, err
		}
	}
	j.orphans, err = os.OpenFile(filepath.Join(stateDir, "helpers"), os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		j.tree, err = fsx.OpenTree(stateDir, tempDir)
	}
	if err == nil {
		err = j.tree.Mkdirs(".", tempDir, setAsideDir, entriesDir)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open state directory: %w", err), j.close())
	}
	return j, nil
}

// LockState makes and locks a state directory until the file is closed.
// ErrStateInUse: after 5 seconds another process has it still.
//
// A killed process keeps its locks for as long as one of its threads waits in
// the kernel, for a dead disk perhaps. So it is the process that replaces the
// servers that should hold this one, not each of them.
func LockState(ctx context.Context, stateDir string) (*os.File, error) {
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	path := filepath.Join(stateDir, "lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open state lock: %w", err)
	}
	err = flock(ctx, f, lockPatience)
	if err == nil {
		return f, nil
	}
	_ = f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("lock %s: %w: end the other plugin, or give this one another --state-dir", path, ErrStateInUse)
	}
	return nil, fmt.Errorf("lock %s: %w", path, err)
}

// flock takes an exclusive lock, EWOULDBLOCK if that takes too long.
func flock(ctx context.Context, f *os.File, patience time.Duration) error {
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(end) || ctx.Err() != nil {
			return err
		}
	}
}

// awaitOrphans waits until no helper of an earlier process is left.
func (j *journal) awaitOrphans(ctx context.Context) error {
	err := flock(ctx, j.orphans, orphanPatience)
	return errors.Join(err, unix.Flock(int(j.orphans.Fd()), unix.LOCK_SH))
}

func (j *journal) close() error {
	var errs []error
	if j.tree != nil {
		errs = append(errs, j.tree.Close())
	}
	if j.orphans != nil {
		errs = append(errs, j.orphans.Close())
	}
	if j.lock != nil {
		errs = append(errs, j.lock.Close())
	}
	return errors.Join(errs...)
}

// put makes the entry durable. On an error either entry may be there.
func (j *journal) put(e entry) error {
	b, err := e.encode()
	if err == nil {
		err = j.tree.Replace(path.Join(entriesDir, entryName(e.Volume)), b)
	}
	if err != nil {
		return fmt.Errorf("write journal entry of volume %s: %w", e.Volume, err)
	}
	return nil
}

// remove makes the entry's absence durable.
func (j *journal) remove(volumeID string) error {
	if err := j.tree.Remove(path.Join(entriesDir, entryName(volumeID))); err != nil {
		return fmt.Errorf("remove journal entry of volume %s: %w", volumeID, err)
	}
	return nil
}

// load reads every entry. What is none is moved to set-aside/ and reported.
func (j *journal) load() (good []entry, bad []Recovered, err error) {
	if err := j.clearTemp(); err != nil {
		return nil, nil, err
	}
	d, err := j.tree.Dir(entriesDir)
	if err != nil {
		return nil, nil, fmt.Errorf("read journal: %w", err)
	}
	defer d.Close()
	list, err := d.Entries()
	if err != nil {
		return nil, nil, fmt.Errorf("read journal: %w", err)
	}
	for _, f := range list {
		b, err := d.Read(f.Name(), maxEntry)
		var e entry
		if err == nil {
			e, err = decodeEntry(f.Name(), b)
		}
		if err != nil {
			bad = append(bad, j.setAside(f.Name(), err))
			continue
		}
		good = append(good, e)
	}
	return good, bad, nil
}

// clearTemp removes what was never renamed, and so never relied on.
func (j *journal) clearTemp() error {
	d, err := j.tree.Dir(tempDir)
	if err != nil {
		return fmt.Errorf("read journal: %w", err)
	}
	defer d.Close()
	list, err := d.Entries()
	if err != nil {
		return fmt.Errorf("read journal: %w", err)
	}
	for _, f := range list {
		if strings.HasPrefix(f.Name(), fsx.TempPrefix) {
			// A leftover that stays does no harm.
			_ = j.tree.Remove(path.Join(tempDir, f.Name()))
		}
	}
	return nil
}

// setAside moves what is no entry out of the way, never over anything. A read
// that failed for the medium may succeed the next time: that file stays.
func (j *journal) setAside(name string, why error) Recovered {
	r := Recovered{File: path.Join(entriesDir, name), Outcome: OutcomeKept, Err: why}
	if _, medium := errors.AsType[syscall.Errno](why); medium && !errors.Is(why, fsx.ErrForeign) {
		return r
	}
	for i := range 1000 {
		to := path.Join(setAsideDir, fmt.Sprintf("%s.%d", name, i))
		err := unix.Renameat2(unix.AT_FDCWD, filepath.Join(j.tree.Name(), r.File),
			unix.AT_FDCWD, filepath.Join(j.tree.Name(), to), unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if err == nil {
			err = j.tree.SyncDir(setAsideDir)
		}
		if err != nil {
			r.Err = errors.Join(why, err)
			return r
		}
		return Recovered{File: to, Outcome: OutcomeSetAside, Err: why}
	}
	return r
}
