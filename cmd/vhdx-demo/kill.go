package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/test/plugin"
)

const (
	// demoKills is how often the worker is killed.
	demoKills = 5
	// between is the time between two kills.
	between = 200 * time.Millisecond
	chunk   = 64 << 10
)

// kill takes the worker, which serves the block device, away under a writer
// that never syncs.
func (d *demo) kill(ctx context.Context) (string, error) {
	w, err := newUnsynced(d.v.Target, "never-synced")
	if err != nil {
		return "", err
	}
	stop := make(chan struct{})
	ended := make(chan error, 1)
	go func() { ended <- w.run(stop) }()
	var longest time.Duration
	for range demoKills {
		gap, err := d.killOnce(ctx, w, ended)
		if err != nil {
			close(stop)
			// It may be in a write that the next worker answers. Until then it
			// keeps the filesystem busy.
			return "", errors.Join(err, <-ended, w.f.Close())
		}
		longest = max(longest, gap)
	}
	close(stop)
	if err := errors.Join(<-ended, w.f.Close()); err != nil {
		return "", d.must(false, "write without a server: %v", err.Error())
	}
	want := file{"never-synced", w.size, hex.EncodeToString(w.sum.Sum(nil))}
	d.show("%.1f MiB written meanwhile, no write failed, none was synced", float64(w.size)/mib)
	if err := d.readDirect(want); err != nil {
		return "", err
	}
	// From here on no power cut may change it.
	d.files = append(d.files, want)
	if err := syncFile(d.v.Target, want.name); err != nil {
		return "", err
	}
	note, err := d.verify(ctx)
	return fmt.Sprintf("%d kills, no I/O error, I/O stood still for %d ms at most; %s", demoKills, longest.Milliseconds(), note), err
}

// killOnce kills the worker and waits until a write that began afterwards is done.
func (d *demo) killOnce(ctx context.Context, w *unsynced, ended chan error) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	pid, err := d.p.AwaitChild(ctx, plugin.Worker)
	if err != nil {
		return 0, err
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return 0, fmt.Errorf("kill worker %d: %w", pid, err)
	}
	died := time.Now()
	next, err := d.p.AwaitChild(ctx, plugin.Worker, pid)
	if err != nil {
		return 0, err
	}
	var gap time.Duration
	for started := time.Now(); ; {
		select {
		case x := <-w.done:
			gap = max(gap, x.end.Sub(later(x.begin, died)))
			if x.begin.Before(started) {
				continue
			}
			d.show("killed process %d, process %d serves: I/O stood still for %d ms", pid, next, gap.Milliseconds())
		case err := <-ended:
			ended <- err
			return 0, d.must(false, "write after the server was killed: %v", err)
		case <-ctx.Done():
			return 0, fmt.Errorf("no write is done after the server was killed: %w", ctx.Err())
		}
		break
	}
	return gap, w.rest(ctx)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// unsynced writes a file, straight to the device and never synced.
type unsynced struct {
	f    *os.File
	src  io.Reader
	buf  []byte
	size int64
	sum  interface {
		io.Writer
		Sum([]byte) []byte
	}
	done chan written // what nobody takes is forgotten
}

// written is one write.
type written struct{ begin, end time.Time }

func newUnsynced(dir, name string) (*unsynced, error) {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE|unix.O_DIRECT, 0o600)
	if err != nil {
		return nil, err
	}
	return &unsynced{f: f, src: rand.NewChaCha8([32]byte{1}), buf: page(chunk), sum: sha256.New(), done: make(chan written, 1)}, nil
}

// run writes until told to stop.
func (w *unsynced) run(stop <-chan struct{}) error {
	for {
		if _, err := io.ReadFull(w.src, w.buf); err != nil {
			return err
		}
		x := written{begin: time.Now()}
		if _, err := w.f.Write(w.buf); err != nil {
			return err
		}
		x.end = time.Now()
		_, _ = w.sum.Write(w.buf) // a hash takes everything
		w.size += chunk
		select {
		case <-stop:
			return nil
		default:
		}
		select {
		case w.done <- x:
		default:
		}
		time.Sleep(time.Millisecond)
	}
}

// rest lets it write for a while.
func (w *unsynced) rest(ctx context.Context) error {
	pause := time.After(between)
	for {
		select {
		case <-w.done:
		case <-pause:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// readDirect reads a file from the device, past the page cache.
func (d *demo) readDirect(want file) error {
	f, err := os.OpenFile(filepath.Join(d.v.Target, want.name), os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	buf := page(chunk)
	for {
		n, err := f.Read(buf)
		_, _ = h.Write(buf[:n]) // a hash takes everything
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", want.name, err)
		}
	}
	got := hex.EncodeToString(h.Sum(nil))
	return d.must(got == want.sum, "%s read from the device: SHA-256 %s, want %s", want.name, got, want.sum)
}

func syncFile(dir, name string) error {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", name, err)
	}
	return syncDir(dir)
}

// page gives memory that direct I/O takes.
func page(n int) []byte {
	b := make([]byte, n+os.Getpagesize())
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (os.Getpagesize() - 1)
	return b[skip:][:n:n]
}
