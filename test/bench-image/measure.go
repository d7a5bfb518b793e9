package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// bench is one run.
type bench struct {
	o       options
	dir     string
	mounted string // where the XFS is; "": nowhere
	made    map[string]bool
}

// side is one of the two that are measured.
type side struct {
	// setup, if set, is not timed.
	setup func(ctx context.Context) error
	// args of the program that is; stdout and stderr matter only if it fails.
	args []string
	// unsynced: afterwards the target is synced, and that is timed apart.
	unsynced bool
	// ok are exit codes that are no failure, besides 0.
	ok []int
}

// line is one line of the table.
type line struct {
	name   string
	want   float64 // ratio; 0: there is no peer
	limit  time.Duration
	rounds int      // 0: as the options say
	reads  []string // files whose cache is dropped before
	writes string   // removed before
	make   func(ctx context.Context) error
	ours   side
	theirs *side
	needs  func() error // why it cannot be measured here
	bytes  int64        // for a rate, where there is no peer
}

// row is what was measured of a line.
type row struct {
	line
	skipped              error
	ours, theirs, synced []float64 // seconds; synced: what the sync of theirs took
}

func (b *bench) measure(ctx context.Context, l line) (row, error) {
	r := row{line: l}
	if l.needs != nil {
		if r.skipped = l.needs(); r.skipped != nil {
			return r, nil
		}
	}
	if l.make != nil {
		if err := l.make(ctx); err != nil {
			return r, err
		}
	}
	rounds := b.o.rounds
	if l.rounds > 0 {
		rounds = min(rounds, l.rounds)
	}
	for round := range rounds {
		for i := range 2 {
			mine := (i+round)%2 == 0
			if !mine && l.theirs == nil {
				continue
			}
			s := l.ours
			if !mine {
				s = *l.theirs
			}
			took, synced, err := b.one(ctx, l, s)
			if err != nil {
				return r, err
			}
			if mine {
				r.ours = append(r.ours, took.Seconds())
			} else {
				r.theirs = append(r.theirs, took.Seconds())
				r.synced = append(r.synced, synced.Seconds())
			}
		}
	}
	return r, b.remove(l.writes)
}

func (b *bench) one(ctx context.Context, l line, s side) (took, synced time.Duration, err error) {
	if err := b.remove(l.writes); err != nil {
		return 0, 0, err
	}
	if s.setup != nil {
		if err := s.setup(ctx); err != nil {
			return 0, 0, err
		}
	}
	for _, path := range l.reads {
		if err := drop(path); err != nil {
			return 0, 0, err
		}
	}
	unix.Sync()
	if err := calm(ctx, b.o.calm); err != nil {
		return 0, 0, err
	}
	began := time.Now()
	if err := command(ctx, s.ok, s.args...); err != nil {
		return 0, 0, err
	}
	took = time.Since(began)
	if s.unsynced {
		began = time.Now()
		err = syncFile(l.writes)
		synced = time.Since(began)
	}
	return took, synced, err
}

func (b *bench) remove(path string) error {
	if path == "" {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func command(ctx context.Context, ok []int, args ...string) error {
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	if exit, is := errors.AsType[*exec.ExitError](err); is && slices.Contains(ok, exit.ExitCode()) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// drop empties the page cache of a file.
func drop(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	err = f.Sync()
	if err == nil {
		err = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	}
	return errors.Join(err, f.Close())
}

func syncFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

// once makes a file that several lines use.
func (b *bench) once(name string, how func(path string) error) func(context.Context) error {
	return func(context.Context) error {
		if b.made[name] {
			return nil
		}
		if b.made == nil {
			b.made = map[string]bool{}
		}
		b.made[name] = true
		return how(b.path(name))
	}
}

const (
	calmLook = 300 * time.Millisecond
	calmIdle = 0.85
)

// calm waits until the processors have been idle for a moment, at most
// patience: on a machine with other work a figure means nothing.
func calm(ctx context.Context, patience time.Duration) error {
	for end := time.Now().Add(patience); time.Now().Before(end); {
		idle, all, err := processors()
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(calmLook):
		}
		idle2, all2, err := processors()
		if err != nil {
			return err
		}
		if (idle2-idle)/(all2-all) >= calmIdle {
			return nil
		}
	}
	return nil
}

// processors reads the first line of /proc/stat: user, nice, system, idle,
// iowait, irq, softirq, steal.
func processors() (idle, all float64, err error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, err
	}
	var v [8]float64
	if _, err := fmt.Sscanf(string(b), "cpu %f %f %f %f %f %f %f %f", &v[0], &v[1], &v[2], &v[3], &v[4], &v[5], &v[6], &v[7]); err != nil {
		return 0, 0, fmt.Errorf("read /proc/stat: %w", err)
	}
	for _, x := range v {
		all += x
	}
	return v[3] + v[4], all, nil
}
