package keeper

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// exchange gives do the connection, alone, once there is one.
func (c *Client) exchange(ctx context.Context, do func(l *link, end time.Time) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		select {
		case c.turn <- struct{}{}:
		case <-c.ctx.Done():
			return c.closed()
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
		}
		l, changed := c.link, c.changed
		if l != nil && ctx.Err() == nil && c.ctx.Err() == nil {
			err := do(l, time.Now().Add(patience))
			<-c.turn
			return err
		}
		<-c.turn
		select {
		case <-changed:
		case <-c.ctx.Done():
			return c.closed()
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
		}
	}
}

// closed is the error of a client that does not try any more.
func (c *Client) closed() error {
	if c.revoked.Load() {
		return ErrRevoked
	}
	return fmt.Errorf("%w: the client is closed", ErrUnavailable)
}

// setLink changes the connection where requests may look for it.
func (c *Client) setLink(l *link) {
	c.turn <- struct{}{}
	c.link = l
	close(c.changed)
	c.changed = make(chan struct{})
	<-c.turn
}

// watch replaces the connection when it ends, until Close.
func (c *Client) watch(l *link) {
	defer close(c.done)
	for {
		select {
		case <-l.dead:
		case <-c.ctx.Done():
			l.close()
			<-l.dead
			return
		}
		c.setLink(nil)
		c.dialer.Lost(l.gone())
		if errors.Is(l.why, ErrRevoked) {
			c.revoked.Store(true)
			c.cancel()
			c.forgetAll() // whoever took this place decides when a device is cut off
			return
		}
		if l = c.redial(); l == nil {
			return
		}
		n, err := c.putAgain(l)
		c.setLink(l)
		c.dialer.Restored(n, err)
	}
}

// redial tries until a keeper answers, or returns nil after Close.
func (c *Client) redial() *link {
	for wait := 2 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		l, err := c.dialer.connect(c.ctx)
		if err == nil {
			return l
		}
		select {
		case <-time.After(wait):
		case <-c.ctx.Done():
			return nil
		}
	}
}

// putAgain gives a new keeper what the old one held. One that systemd has
// given it back holds it already; of what somebody else has put meanwhile the
// newer generation counts.
func (c *Client) putAgain(l *link) (n int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.put {
		a, perr := l.call(e.message(opPut), e.files, time.Now().Add(patience))
		switch {
		case perr == nil, errors.Is(perr, ErrStale) && a.generation == e.generation:
			n++
		case errors.Is(perr, ErrStale):
			closeAll(e.files)
			delete(c.put, e.id)
		default:
			err = errors.Join(err, fmt.Errorf("keep volume %s: %w", e.id, perr))
		}
	}
	return n, err
}
