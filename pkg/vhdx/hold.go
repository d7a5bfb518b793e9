package vhdx

import (
	"sync"
	"time"
)

// Hold keeps writes and discards waiting until release is called, or until a
// rotation has put another image in this one's place: what comes then is not in
// the image that is frozen. So several disks that are held, then rotated, and
// then released are frozen at one point in time. It returns when no write is
// under way. Reads and flushes go on.
func (im *Image) Hold() (release func(), err error) {
	im.rotation.Lock()
	defer im.rotation.Unlock()
	h := im.head()
	if err := h.usable(true); err != nil {
		return nil, err
	}
	if err := h.begin(); err != nil { // later it would let writes in
		return nil, err
	}
	g := &gate{opened: make(chan struct{})}
	h.gate.Store(g)
	h.writable.Store(false)
	h.pins.wait()
	return sync.OnceFunc(func() {
		im.rotation.Lock()
		defer im.rotation.Unlock()
		if h.gate.Load() == g { // no rotation came
			h.writable.Store(h.begun.Load() && h.Poisoned() == nil)
			h.gate.Store(nil)
		}
		close(g.opened)
	}), nil
}

// LastPause is how long the last rotation kept writes waiting. 0: there was none.
func (im *Image) LastPause() time.Duration { return time.Duration(im.pause.Load()) }
