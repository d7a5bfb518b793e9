package pool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/fsx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool/lease"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// tempAge is how old a temporary file is before nobody can still be at it. A
// process that is even slower gets fs.ErrNotExist and its caller tries again.
const tempAge = time.Hour

// Collected says what Collect did.
type Collected struct {
	Operations int // unfinished ones of dead processes, ended
	Temporary  int // files removed
	// Controllers is how many records of controllers were removed whose
	// certificate has ended.
	Controllers int
}

// Collect finishes or undoes what dead processes left: creations and growths
// that did or did not happen, deletions that were under way, and temporary
// files. Its work does not depend on how many volumes there are. What a living
// process is at, it leaves alone; call it now and then.
func (p *Pool) Collect(ctx context.Context) (Collected, error) {
	c, err := p.collect(ctx)
	n, terr := p.collectTemp()
	c.Temporary = n
	gone, cerr := p.collectControllers(time.Now())
	c.Controllers = gone
	p.takeBallast()
	return c, errors.Join(err, terr, cerr)
}

func (p *Pool) collect(ctx context.Context) (c Collected, err error) {
	a, err := p.readAccount()
	if errors.Is(err, errNoAccount) {
		return c, nil
	}
	if err != nil {
		return c, err
	}
	seen := map[hash]bool{}
	for _, o := range a.Operations {
		if seen[o.hash] {
			continue
		}
		seen[o.hash] = true
		n, oerr := p.collectVolume(ctx, o.hash)
		c.Operations += n
		err = errors.Join(err, oerr)
	}
	return c, err
}

// collectVolume resolves the operations on one name, unless somebody has its lock.
func (p *Pool) collectVolume(ctx context.Context, h hash) (int, error) {
	s, err := p.tryVolume(h)
	if errors.Is(err, fsx.ErrLocked) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer s.close()
	if err := s.enter(ctx); err != nil {
		return 0, err
	}
	a, err := p.readAccount() // again: under the lock they are dead
	if err != nil {
		return 0, err
	}
	dead := a.of(h)
	return len(dead), s.resolveAll(ctx, dead)
}

// resolve ends a dead operation as its record says. The caller has the
// volume's lock and has entered.
func (s *session) resolve(ctx context.Context, o *operation) error {
	var err error
	switch o.Kind {
	case opCreate:
		err = s.resolveCreate(ctx, o)
	case opGrow:
		err = s.resolveGrow(ctx, o)
	case opDelete:
		err = s.resolveDelete(ctx, o)
	case opChange:
		err = s.resolveChange(ctx, o)
	}
	if errors.Is(err, errNoAccount) || errors.Is(err, errSuperseded) {
		return nil // the records are counted anew, or somebody else did it
	}
	if err != nil {
		return fmt.Errorf("resolve an interrupted %s of name %s: %w", o.Kind, o.Hash, err)
	}
	return nil
}

// recordOf returns the record of the operation's incarnation, nil if there is none.
func (s *session) recordOf(o *operation) (*record, error) {
	r, err := s.p.readRecord(o.hash)
	if errors.Is(err, fs.ErrNotExist) || err == nil && r.id.inc.String() != o.Incarnation {
		return nil, nil
	}
	return r, err
}

// settled ends an operation that happened; its record is made durable first.
func (s *session) settled(ctx context.Context, o *operation) error {
	return s.commitAny(ctx, o, func(a *account) error {
		err := s.p.tree.SyncDir(path.Dir(s.p.recordPath(o.hash)))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		a.settle(o)
		return nil
	})
}

// dropped ends an operation that did not happen.
func (s *session) dropped(ctx context.Context, o *operation) error {
	return s.commitAny(ctx, o, func(a *account) error {
		delete(a.Operations, o.key)
		return nil
	})
}

// commitAny changes the account if the operation is still in it.
func (s *session) commitAny(ctx context.Context, o *operation, change func(*account) error) error {
	return s.account(ctx, func(a *account) error {
		if a.Operations[o.key] == nil {
			return errSuperseded
		}
		a.frees = true
		return change(a)
	}, nil)
}

func (s *session) resolveCreate(ctx context.Context, o *operation) error {
	happened := false
	err := s.commitAny(ctx, o, func(a *account) error {
		r, err := s.recordOf(o)
		if err != nil {
			return err
		}
		if happened = r != nil; happened {
			return errKeep
		}
		// From here on a process that was only slow cannot commit any more.
		a.Operations[o.key].Aborting = true
		return nil
	})
	if err != nil {
		return err
	}
	if happened {
		return s.settled(ctx, o)
	}
	if err := s.p.removeUnborn(o); err != nil { //nolint:contextcheck // what it does is short, or may not be cut short
		return err
	}
	if err := s.p.disclaim(o.Parent, o.Image); err != nil {
		return err
	}
	return s.dropped(ctx, o)
}

// finishDrop takes an image out of the record, if its file is gone.
func (s *session) finishDrop(r *record, image string) error {
	if _, err := s.p.tree.Stat(imagePath(image)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	s.p.forgetChildren(image)
	r.without(image)
	return s.replaceFresh(r)
}

// resolveChange removes an image that no record has come to name, and counts
// what the record says now.
func (s *session) resolveChange(ctx context.Context, o *operation) error {
	r, err := s.lineageOf(o)
	if err != nil {
		return err
	}
	if r == nil {
		return s.dropped(ctx, o) // its deletion has counted everything
	}
	if !r.names(o.Image) {
		if err := s.p.removeUnborn(o); err != nil { //nolint:contextcheck // what it does is short, or may not be cut short
			return err
		}
	} else if o.Drop {
		if err := s.finishDrop(r, o.Image); err != nil {
			return err
		}
	}
	return s.commitAny(ctx, o, func(a *account) error {
		if err := s.p.tree.SyncDir(path.Dir(s.p.pathOf(r))); err != nil {
			return err
		}
		a.settleChange(o, r)
		return nil
	})
}

func (s *session) resolveGrow(ctx context.Context, o *operation) error {
	r, err := s.recordOf(o)
	if err != nil {
		return err
	}
	if r != nil && r.Committed == o.Committed {
		return s.settled(ctx, o)
	}
	return s.dropped(ctx, o)
}

func (s *session) resolveDelete(ctx context.Context, o *operation) error {
	r, err := s.recordOf(o)
	switch {
	case err != nil:
		return err
	case r == nil:
		after, err := s.lineageOf(o)
		if err != nil {
			return err
		}
		switch {
		case after != nil: // it has retired
			o.Bytes = o.Before - after.Committed
		case o.Before > 0:
			o.Bytes = o.Before
		}
		return s.settled(ctx, o)
	case !r.Deleting:
		return s.dropped(ctx, o)
	}
	image, err := s.p.claimImage(r.Image)
	if err != nil {
		return s.p.heldError("delete", r, err)
	}
	defer closeFile(image)
	return s.remove(ctx, r, o)
}

// removeUnborn removes the images of a creation that did not happen. Each must be
// locked by nobody, and incomplete, or without any data, or a file that was to be
// imported and has its old name yet: what holds data is never removed because a
// record is missing (I-POOL-4), but for a copy.
func (p *Pool) removeUnborn(o *operation) error {
	var err error
	for _, image := range o.images() {
		err = errors.Join(err, p.removeUnbornImage(image, o.Copy))
	}
	return err
}

func (p *Pool) removeUnbornImage(image string, isCopy bool) error {
	f, err := p.claimImage(image)
	if err != nil {
		return err
	}
	if f == nil {
		return p.leases.Forget(image) // whoever removed it may have died before that
	}
	defer f.Close()
	name := imagePath(image)
	kept, err := fsx.OtherNames(f)
	if err != nil {
		return err
	}
	if !kept && !isCopy && !dataless(f) {
		return fmt.Errorf("image %s: %w: it belongs to an interrupted creation, but holds data; move it away", name, ErrDamaged)
	}
	return p.removeImage(image)
}

// dataless reports whether an image is incomplete or provably blank. It reads
// through the very description that has the lock, which f keeps.
func dataless(f *os.File) bool {
	same, err := fsx.Dup(f)
	if err != nil {
		return false
	}
	osf, err := vhdx.NewOSFile(same, vhdx.FileOptions{ReadOnly: true, NoLock: true, Buffered: true})
	if err != nil {
		same.Close()
		return false
	}
	im, err := vhdx.Open(osf, vhdx.OpenOptions{ReadOnly: true, NoParents: true})
	if err != nil {
		return errors.Is(err, vhdx.ErrCorrupt) || errors.Is(err, vhdx.ErrNotVHDX)
	}
	defer im.Close()
	if info := im.Info(); info.HasParent {
		return info.AllocatedBlocks == 0
	}
	blank, err := im.Blank()
	return err == nil && blank
}

// collectTemp removes old temporary files.
func (p *Pool) collectTemp() (int, error) {
	d, err := p.tree.Dir(dirTemp)
	if err != nil {
		return 0, err
	}
	defer d.Close()
	entries, err := d.Entries()
	if err != nil {
		return 0, err
	}
	n := 0
	for _, e := range entries {
		if !isTemp(e.Name()) || !e.Type().IsRegular() {
			continue
		}
		fi, err := d.Lstat(e.Name())
		if err != nil || time.Since(fi.ModTime()) < tempAge {
			continue
		}
		if err := p.tree.RemoveLazily(path.Join(dirTemp, e.Name())); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

var _ lease.Leaser = (*lease.OFD)(nil)
