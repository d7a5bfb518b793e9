package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// patience is how long a client waits for an answer when its context does not
// say. The keeper answers at once or is in trouble.
const patience = 5 * time.Second

// Dialer connects to a keeper.
type Dialer struct {
	Socket string
	Build  string // name of the caller's build, for the keeper's messages
	// Owner, if set, names whom this client serves. Of the clients of one
	// owner only the last is served: once Dial has returned, no request of an
	// earlier one is carried out, sent before its death or not.
	Owner string
	// Lost and Restored, if set, are told that the keeper has gone and, when
	// another one has been found, how many items it was given again, and what
	// it did not take. Calls come one at a time and must not call the client.
	Lost     func(err error)
	Restored func(items int, err error)
}

// Client speaks to a keeper. Its methods may be called from several
// goroutines, and take at most 5 seconds when the context sets no deadline.
//
// It remembers, with copies of the descriptors, what it has put: when the
// keeper dies it waits for the next one and puts everything again.
type Client struct {
	dialer Dialer
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	done   chan struct{} // closed when the goroutine has ended
	// revoked: somebody else has this client's place.
	revoked atomic.Bool

	turn    chan struct{} // full while a request is under way; guards the next two
	link    *link         // nil: the keeper has gone
	changed chan struct{} // closed when link changes

	mu  sync.Mutex // guards put
	put map[string]*entry
}

// Dial connects, and agrees on the protocol's version. ErrUnavailable: there is
// no keeper; ErrVersion names both sides' versions.
func Dial(ctx context.Context, socket string) (*Client, error) {
	return Dialer{Socket: socket}.Dial(ctx)
}

// Dial is like the function Dial.
func (d Dialer) Dial(ctx context.Context) (*Client, error) {
	if d.Lost == nil {
		d.Lost = func(error) {}
	}
	if d.Restored == nil {
		d.Restored = func(int, error) {}
	}
	l, err := d.connect(ctx)
	if err != nil {
		return nil, err
	}
	c := &Client{
		dialer: d, link: l, changed: make(chan struct{}), turn: make(chan struct{}, 1),
		put: map[string]*entry{}, done: make(chan struct{}),
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	go c.watch(l)
	return c, nil
}

// Close ends the connection. What was put stays where it is.
func (c *Client) Close() error {
	c.cancel()
	<-c.done
	c.forgetAll()
	return nil
}

func (c *Client) forgetAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, e := range c.put {
		closeAll(e.files)
		delete(c.put, id)
	}
}

// Put keeps an item that is new, or replaces one by a greater generation. No
// Files at all means that those held stay. The caller's files stay the
// caller's. A replacement cannot take a device away: its Files must name every
// device and socket that the old ones did, or Drop comes first.
func (c *Client) Put(ctx context.Context, i Item) error {
	if err := i.check(); err != nil {
		return err
	}
	files, err := descriptors(i.Files)
	if err != nil {
		return err
	}
	e := &entry{id: i.ID, generation: i.Generation, meta: slices.Clone(i.Meta), files: files}
	err = c.exchange(ctx, func(l *link, end time.Time) error {
		if len(files) == 0 && !c.remembers(i.ID) {
			if err := c.learn(l, i.ID, end); err != nil && !errors.Is(err, ErrNotFound) {
				return err
			}
		}
		_, err := l.call(e.message(opPut), files, end)
		if err == nil {
			c.remember(e, len(files) == 0)
		}
		return err
	})
	if err != nil {
		closeAll(files)
		return fmt.Errorf("keep volume %s: %w", i.ID, err)
	}
	return nil
}

// Get returns an item with descriptors of the same open files. From then on
// this client keeps copies of them, as if it had put the item; ErrNotFound
// closes the copies it has.
func (c *Client) Get(ctx context.Context, id string) (Item, error) {
	var i Item
	var files []int
	err := c.exchange(ctx, func(l *link, end time.Time) error {
		err := c.learn(l, id, end)
		if err == nil {
			i, files, err = c.copy(id)
		}
		return err
	})
	if err != nil {
		return Item{}, fmt.Errorf("get what is kept of volume %s: %w", id, err)
	}
	for n, fd := range files {
		i.Files = append(i.Files, os.NewFile(uintptr(fd), fmt.Sprintf("kept %d of %s", n, id)))
	}
	return i, nil
}

// List returns all items in the order of their ids, without Files. An item
// that comes or goes meanwhile may be in it.
func (c *Client) List(ctx context.Context) ([]Item, error) {
	var items []Item
	cursor := ""
	for {
		var a answer
		err := c.exchange(ctx, func(l *link, end time.Time) (err error) {
			a, err = l.call(message{op: opNext, id: cursor}, nil, end)
			return err
		})
		switch {
		case errors.Is(err, ErrNotFound):
			return items, nil
		case err != nil:
			return nil, fmt.Errorf("list what is kept: %w", err)
		case a.id <= cursor:
			return nil, fmt.Errorf("list what is kept: %q follows %q: %w", a.id, cursor, errMessage)
		}
		items = append(items, Item{ID: a.id, Generation: a.generation, Meta: a.body})
		cursor = a.id
	}
}

// Drop ends the keeping of a volume's item and closes its descriptors, which
// may end its device. ErrNotFound: that has been done.
func (c *Client) Drop(ctx context.Context, id string, generation uint64) error {
	err := c.exchange(ctx, func(l *link, end time.Time) error {
		_, err := l.call(message{op: opDrop, id: id, generation: generation}, nil, end)
		if err == nil || errors.Is(err, ErrNotFound) {
			c.forget(id, generation)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("drop what is kept of volume %s: %w", id, err)
	}
	return nil
}

// Status is what a keeper says of itself.
type Status struct {
	PID      int       `json:"pid"`
	Build    string    `json:"build"`
	Started  time.Time `json:"started"`
	Items    int       `json:"items"`
	MaxItems int       `json:"maxItems"`
	Files    int       `json:"files"`
	MaxFiles int       `json:"maxFiles"`
	Bytes    int64     `json:"bytes"` // of memfds
	MaxBytes int64     `json:"maxBytes"`
	Clients  int       `json:"clients"`
	// Stored: every item is in systemd's descriptor store too.
	Stored bool `json:"stored"`
	// Exposed says what protects the keeper less than it could be.
	Exposed []string `json:"exposed,omitempty"`
}

// Status asks the keeper how it is.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	err := c.exchange(ctx, func(l *link, end time.Time) error {
		a, err := l.call(message{op: opStatus}, nil, end)
		if err == nil {
			err = json.Unmarshal(a.body, &s)
		}
		return err
	})
	if err != nil {
		return Status{}, fmt.Errorf("ask the keeper for its status: %w", err)
	}
	return s, nil
}

// Stop ends the keeper. ErrHolding, which says what would be lost: it holds
// something and force is not set.
func (c *Client) Stop(ctx context.Context, force bool) error {
	m := message{op: opStop}
	if force {
		m.generation = 1
	}
	err := c.exchange(ctx, func(l *link, end time.Time) error {
		_, err := l.call(m, nil, end)
		return err
	})
	if err != nil {
		return fmt.Errorf("stop the keeper: %w", err)
	}
	return nil
}

// learn gets an item and remembers it: from now on this process serves it.
func (c *Client) learn(l *link, id string, end time.Time) error {
	a, err := l.call(message{op: opGet, id: id}, nil, end)
	if errors.Is(err, ErrNotFound) {
		c.forget(id, math.MaxUint64)
	}
	if err != nil {
		return err
	}
	c.remember(&entry{id: a.id, generation: a.generation, meta: a.body, files: a.files}, false)
	return nil
}

func (c *Client) remembers(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.put[id] != nil
}

// copy gives the caller what is remembered, with descriptors of its own.
func (c *Client) copy(id string) (Item, []int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.put[id]
	if e == nil {
		return Item{}, nil, ErrNotFound
	}
	files, err := duplicate(e.files)
	return Item{ID: id, Generation: e.generation, Meta: slices.Clone(e.meta)}, files, err
}

// remember takes over e; inherit says that its files are those of before.
func (c *Client) remember(e *entry, inherit bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch old := c.put[e.id]; {
	case old == nil:
	case inherit:
		e.files = old.files
	default:
		closeAll(old.files)
	}
	c.put[e.id] = e
}

// forget closes the copies of an item up to that generation.
func (c *Client) forget(id string, generation uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.put[id]; e != nil && e.generation <= generation {
		closeAll(e.files)
		delete(c.put, id)
	}
}
