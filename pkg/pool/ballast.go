package pool

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"time"

	"golang.org/x/sys/unix"
)

// On a full share nothing can be written, and what frees space (a deletion, a
// detach) has to write first. So a pool keeps a file that is of no other use
// and is given up then. It comes back when there is space.
const (
	fileBallast = "ballast"
	ballastSize = 1 << 20
	ballastRoom = 64 << 20 // of free space, before ballast is made again

	ballastTries = 40
	ballastPause = 50 * time.Millisecond
)

// spending runs write; if the filesystem is full, it runs it again with the
// ballast thrown off.
func (p *Pool) spending(write func() error) error {
	err := write()
	if !isFull(err) {
		return err
	}
	if _, serr := p.tree.Stat(fileBallast); serr != nil {
		return err
	}
	if rerr := p.tree.Remove(fileBallast); rerr != nil {
		return err
	}
	// A filesystem may hand freed space out only some time later (ext4: after
	// its journal has done with it).
	for range ballastTries {
		if err = write(); !isFull(err) {
			break
		}
		time.Sleep(ballastPause)
	}
	return err
}

// takeBallast makes it again. It is best effort: a pool without works.
func (p *Pool) takeBallast() {
	if _, err := p.tree.Stat(fileBallast); !errors.Is(err, fs.ErrNotExist) {
		return
	}
	ph, err := p.disk()
	if err != nil || ph.free < ballastRoom {
		return
	}
	b := make([]byte, ballastSize)
	rand.Read(b)                         // never fails; does not compress
	p.tree.ReplaceLazily(fileBallast, b) //nolint:errcheck // see above
}

func isFull(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}
