package wire

import (
	"net"
	"sync"
)

// maxConnections bounds what strangers can take of this process' descriptors,
// of which it needs some for each volume that it serves.
const maxConnections = 256

// bounded is a listener that has so many connections at a time. Others wait in
// the kernel's queue.
type bounded struct {
	net.Listener
	slots chan struct{}
	end   chan struct{}
	once  sync.Once
}

func newBounded(l net.Listener, n int) *bounded {
	return &bounded{Listener: l, slots: make(chan struct{}, n), end: make(chan struct{})}
}

func (b *bounded) Accept() (net.Conn, error) {
	select {
	case b.slots <- struct{}{}:
	case <-b.end:
		return nil, net.ErrClosed
	}
	c, err := b.Listener.Accept()
	if err != nil {
		<-b.slots
		return nil, err
	}
	return &counted{Conn: c, leave: sync.OnceFunc(func() { <-b.slots })}, nil
}

func (b *bounded) Close() error {
	b.once.Do(func() { close(b.end) })
	return b.Listener.Close()
}

type counted struct {
	net.Conn
	leave func()
}

func (c *counted) Close() error {
	defer c.leave()
	return c.Conn.Close()
}
