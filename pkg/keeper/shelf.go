package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// shelf keeps copies of all items in systemd's descriptor store, from which
// they come back when systemd starts the keeper again. It runs beside the
// keeper: a client never waits for systemd.
//
// Every descriptor has a name of its own there. An item is a record, a memfd
// with its id, meta and the names of its files, which is sent last and taken
// away first; a record whose files are not all there is none.
//
// A nil shelf is that of a keeper which systemd has not started.
type shelf struct {
	store  *store
	note   func(string)
	notify string // path of its socket; @ begins an abstract one
	cancel context.CancelFunc
	wg     sync.WaitGroup
	wake   chan struct{}

	// store.mu guards these.
	dirty   map[string]bool
	shelved map[string]shelved
	records uint64 // number of the last record
}

// shelved is an item as systemd has it.
type shelved struct {
	record string
	files  []string
}

// record is the content of an item's memfd.
type record struct {
	ID         string   `json:"id"`
	Generation uint64   `json:"generation"`
	Meta       []byte   `json:"meta"`
	Files      []string `json:"files"`
}

const (
	recordName = "vhdx-item-"
	fileName   = "vhdx-file-"
	maxRecord  = 16 << 10
	// shelfPatience bounds each exchange with systemd; after a failure the
	// next attempt comes as much later.
	shelfPatience = 5 * time.Second
)

// openShelf takes back what systemd has and tells it that the keeper is ready.
func openShelf(ctx context.Context, s *store, note func(string)) (*shelf, error) {
	path := os.Getenv("NOTIFY_SOCKET")
	inherited := listenFDs()
	if path == "" {
		for _, f := range inherited {
			closeAll([]int{f.fd})
		}
		return nil, nil
	}
	h := &shelf{
		store: s, note: note, notify: path,
		wake: make(chan struct{}, 1), dirty: map[string]bool{}, shelved: map[string]shelved{},
	}
	h.restore(inherited)
	if err := h.tell("READY=1"); err != nil {
		return nil, fmt.Errorf("tell systemd that the keeper is ready: %w", err)
	}
	s.mu.Lock()
	s.changed = h.changed
	s.mu.Unlock()
	ctx, h.cancel = context.WithCancel(ctx)
	h.wg.Go(func() { h.run(ctx) })
	return h, nil
}

func (h *shelf) close() {
	if h != nil {
		h.cancel()
		h.wg.Wait()
	}
}

// changed is called with store.mu held.
func (h *shelf) changed(id string) {
	h.dirty[id] = true
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// complete reports whether systemd has everything.
func (h *shelf) complete() bool {
	if h == nil {
		return false
	}
	h.store.mu.Lock()
	defer h.store.mu.Unlock()
	return h.completeLocked()
}

func (h *shelf) completeLocked() bool { return h != nil && len(h.dirty) == 0 }

// run brings systemd's store up to date whenever something has changed.
func (h *shelf) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.wake:
		}
		for id, ok := h.some(); ok; id, ok = h.some() {
			if err := h.update(ctx, id); err != nil {
				h.note(fmt.Sprintf("systemd's descriptor store lacks volume %s: %v", id, err))
				select {
				case <-ctx.Done():
					return
				case <-time.After(shelfPatience):
				}
			}
		}
	}
}

func (h *shelf) some() (string, bool) {
	h.store.mu.Lock()
	defer h.store.mu.Unlock()
	for id := range h.dirty {
		return id, true
	}
	return "", false
}

// parcel is what one update sends and takes away.
type parcel struct {
	now    *holding
	next   shelved
	record []byte
	send   []string // names, of fds
	fds    []int
	remove []string
}

// update makes systemd's copy of one item what the keeper holds.
func (h *shelf) update(ctx context.Context, id string) error {
	p, err := h.pack(id)
	if err != nil {
		return err
	}
	defer func() { closeAll(p.fds) }()
	for i, name := range p.send {
		if err := h.give(name, p.fds[i]); err != nil {
			return err
		}
	}
	if p.now != nil {
		if err := h.giveRecord(p.next.record, p.record); err != nil {
			return err
		}
	}
	for _, name := range p.remove {
		if err := h.tell("FDSTOREREMOVE=1\nFDNAME=" + name); err != nil {
			return err
		}
	}
	if err := h.barrier(ctx); err != nil {
		return err
	}
	h.store.mu.Lock()
	defer h.store.mu.Unlock()
	if h.shelved[id] = p.next; p.now == nil {
		delete(h.shelved, id)
	}
	if h.store.items[id] == p.now {
		delete(h.dirty, id)
	}
	return nil
}

// pack decides what an update does. systemd ignores an open file that it has
// already, under whatever name, so a file keeps its name for life.
func (h *shelf) pack(id string) (p parcel, err error) {
	h.store.mu.Lock()
	defer h.store.mu.Unlock()
	p.now = h.store.items[id]
	before := h.shelved[id]
	if before.record != "" {
		p.remove = append(p.remove, before.record)
	}
	if p.now != nil {
		h.records++
		p.next.record = fmt.Sprint(recordName, h.records)
		for _, f := range p.now.files {
			name := fmt.Sprint(fileName, f.serial)
			p.next.files = append(p.next.files, name)
			if !slices.Contains(before.files, name) {
				p.send, p.fds = append(p.send, name), append(p.fds, f.fd)
			}
		}
		r := record{ID: id, Generation: p.now.generation, Meta: p.now.meta, Files: p.next.files}
		if p.record, err = json.Marshal(r); err != nil {
			return parcel{}, err
		}
	}
	for _, name := range before.files {
		if !slices.Contains(p.next.files, name) {
			p.remove = append(p.remove, name)
		}
	}
	p.fds, err = duplicate(p.fds)
	return p, err
}

// giveRecord stores a record in a memfd of its own.
func (h *shelf) giveRecord(name string, b []byte) error {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if n, err := unix.Pwrite(fd, b, 0); err != nil || n != len(b) {
		return errors.Join(err, fmt.Errorf("write record: %d of %d bytes", n, len(b)))
	}
	return h.give(name, fd)
}

func (h *shelf) give(name string, fd int) error {
	return h.tell("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, fd)
}

// tell sends systemd a message. It waits only if systemd does not read.
func (h *shelf) tell(text string, files ...int) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	limit := unix.NsecToTimeval(int64(shelfPatience))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit); err != nil {
		return err
	}
	var rights []byte
	if len(files) > 0 {
		rights = unix.UnixRights(files...)
	}
	if err := unix.Sendmsg(fd, []byte(text), rights, &unix.SockaddrUnix{Name: h.notify}, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("write to %s: %w", h.notify, err)
	}
	return nil
}

// barrier returns when systemd has processed all that it was told.
func (h *shelf) barrier(ctx context.Context) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	fds, err := descriptors([]*os.File{w})
	_ = w.Close()
	if err != nil {
		return err
	}
	err = h.tell("BARRIER=1", fds...)
	closeAll(fds)
	if err != nil {
		return err
	}
	if err := r.SetReadDeadline(time.Now().Add(shelfPatience)); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Now()) })()
	if _, err = r.Read(make([]byte, 1)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return nil // systemd has closed its end
	}
	return fmt.Errorf("systemd does not process what it is told: %w", err)
}
