package lease

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/fsx"
)

// OFD leases with an OFD lock over the whole image, on the description all
// its I/O uses, and writes down who holds it.
type OFD struct {
	tree *fsx.Tree
	dir  string
	self Holder
	wait time.Duration
}

// NewOFD keeps holder records in directory dir of tree. self says who has what
// this process holds.
func NewOFD(tree *fsx.Tree, dir string, self Holder) *OFD {
	return &OFD{tree: tree, dir: dir, self: self, wait: drainWait}
}

// Acquire takes the lease of image name on f.
func (l *OFD) Acquire(ctx context.Context, name string, f *os.File, m Mode) (Lease, error) {
	if err := l.drain(ctx, name, f, m); err != nil {
		return nil, err
	}
	h := l.self
	h.Since = time.Now().UTC().Truncate(time.Second)
	held := &ofdLease{l: l, f: f, name: name, holder: h, lost: make(chan struct{})}
	if m == Exclusive {
		// The lock decides; a record that cannot be written costs a name in
		// an error message, not the lease.
		held.recorded = l.record(name, h) == nil
	}
	return held, nil
}

// drain takes the lock, and waits for it where its holder is a dead process of
// this node: what that had issued and the kernel has not finished must not land
// on top of what comes now, and the lock's release is the proof that it cannot.
func (l *OFD) drain(ctx context.Context, name string, f *os.File, m Mode) error {
	ctx, cancel := context.WithTimeout(ctx, l.wait)
	defer cancel()
	for {
		err := l.lock(name, f, m)
		held, ok := errors.AsType[*HeldError](err)
		if !ok {
			return err
		}
		if held.Draining = held.Holder.diedBefore(l.self); !held.Draining {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(drainPoll):
		}
	}
}

// A dead process' I/O was seen to take up to 4.7 s.
const (
	drainWait = 15 * time.Second
	drainPoll = 20 * time.Millisecond
)

// Claim is an exclusive Acquire for a moment: nothing is recorded, and it ends
// when f is closed.
func (l *OFD) Claim(name string, f *os.File) error { return l.lock(name, f, Exclusive) }

func (l *OFD) lock(name string, f *os.File, m Mode) error {
	for until := time.Now().Add(forkGrace); ; time.Sleep(forkPoll) {
		err := fsx.TryLock(f, fsx.Whole, m == Exclusive)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, fsx.ErrLocked):
			return fmt.Errorf("take the lease of %s: %w", f.Name(), err)
		}
		if h := l.recorded(name); h.Node != "" || time.Now().After(until) {
			return &HeldError{File: f.Name(), Holder: h}
		}
	}
}

// A process that starts another has its open files twice until that one's exec.
// What was closed meanwhile, its lock included, goes only then. Whoever closes an
// image takes its name back first, so this is waited for only where there is none.
const (
	forkGrace = 250 * time.Millisecond
	forkPoll  = 2 * time.Millisecond
)

// Forget removes what is recorded of an image that is being deleted.
func (l *OFD) Forget(name string) error { return l.tree.Remove(l.file(name)) }

func (l *OFD) file(name string) string {
	return path.Join(l.dir, name[:min(2, len(name))], name+".json")
}

func (l *OFD) record(name string, h Holder) error {
	b, err := json.Marshal(h)
	if err != nil {
		return err
	}
	if err := l.tree.Mkdir(path.Dir(l.file(name))); err != nil {
		return err
	}
	return l.tree.ReplaceLazily(l.file(name), append(b, '\n'))
}

// maxRecord bounds a holder record.
const maxRecord = 4096

// recorded is who the record says has it: a hint for people, so that whatever
// is wrong with it is just "unknown".
func (l *OFD) recorded(name string) Holder {
	b, err := l.tree.Read(l.file(name), maxRecord)
	if err != nil {
		return Holder{}
	}
	return decodeHolder(b)
}

func decodeHolder(b []byte) Holder {
	var h Holder
	if json.Unmarshal(b, &h) != nil || len(h.Node) > 256 {
		return Holder{}
	}
	return h
}

type ofdLease struct {
	l        *OFD
	f        *os.File
	name     string
	holder   Holder
	recorded bool
	lost     chan struct{}
}

// Lost never fires: an OFD lock is not seen to go. I/O on the description is
// refused by the server instead, where the filesystem fences.
func (h *ofdLease) Lost() <-chan struct{} { return h.lost }

func (h *ofdLease) Holder() Holder { return h.holder }

// Release takes the record away first: whoever gets the lock next writes its own.
func (h *ofdLease) Release() error {
	if h.recorded {
		h.l.tree.RemoveLazily(h.l.file(h.name)) //nolint:errcheck // a hint for people
	}
	return fsx.Unlock(h.f, fsx.Whole)
}
