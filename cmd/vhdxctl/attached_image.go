package main

import (
	"sync/atomic"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// committedImage is an image without a keeper: if this process dies, nobody
// knows what it had in memory. So a request that changes where something lies
// is answered only after that is in the log, durably.
type committedImage struct {
	*vhdx.Image
	// changing counts requests whose changes are in memory and may not be in
	// the log yet.
	changing atomic.Int64
}

// Pin leaves writes to WriteAt while a change is under way: the place that it
// finds may be one that is not in the log. Looking after the pin is had makes
// it sure: who changes something counts himself first.
func (c *committedImage) Pin(write bool, off, n int64) (fileOff int64, pin uint32, ok bool) {
	fileOff, pin, ok = c.Image.Pin(write, off, n)
	if ok && write && c.changing.Load() > 0 {
		c.Unpin(pin)
		return 0, 0, false
	}
	return fileOff, pin, ok
}

// WriteAt implements blockdev.Image.
func (c *committedImage) WriteAt(p []byte, off int64) (n int, err error) {
	if _, pin, ok := c.Pin(true, off, int64(len(p))); ok {
		c.Unpin(pin)
		return c.Image.WriteAt(p, off) // a mapping that is in the log stays
	}
	err = c.change(func() error {
		n, err = c.Image.WriteAt(p, off)
		return err
	})
	return n, err
}

// WriteZeroes implements blockdev.Image.
func (c *committedImage) WriteZeroes(off, n int64) error {
	return c.change(func() error { return c.Image.WriteZeroes(off, n) })
}

// Discard implements blockdev.Image.
func (c *committedImage) Discard(off, n int64) error {
	return c.change(func() error { return c.Image.Discard(off, n) })
}

func (c *committedImage) change(do func() error) error {
	c.changing.Add(1)
	defer c.changing.Add(-1)
	if err := do(); err != nil {
		return err
	}
	return c.Flush()
}
