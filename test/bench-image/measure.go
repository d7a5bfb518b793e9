package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// bench is one run.
type bench struct {
	o       options
	dir     string
	self    string // this program
	mounted string // where the XFS is; "": nowhere
	made    map[string]bool
}

// side is one of the two that are measured.
type side struct {
	// setup, if set, is not timed.
	setup func(ctx context.Context) error
	// args of the program that is timed; its output matters only if it fails.
	args []string
	// then, if set, is timed with it: what the program leaves undone that the
	// other side does.
	then func() error
	// unsynced: the program leaves its target in the page cache. The sync that
	// makes it as durable as the other side's is timed apart and counts.
	unsynced bool
	// patience, if set, is after how long the program is killed: then its time
	// is at least this.
	patience time.Duration
	// inside: the time is the one the program tells (vhdxctl bench --json),
	// for what a process and an open image cost is another line.
	inside bool
}

// line is one line of the table.
type line struct {
	name   string
	want   float64 // ratio; 0: there is no target
	limit  time.Duration
	rounds int      // 0: as the options say
	quick  bool     // takes milliseconds: more rounds
	reads  []string // files whose cache is dropped before
	writes string   // removed before and after
	make   func(ctx context.Context) error
	ours   side
	theirs *side  // nil: there is no peer
	peer   string // who theirs is; "": qemu-img
	needs  func(ctx context.Context) error
	bytes  int64                           // that a round moves, for a rate
	check  func(ctx context.Context) error // of what theirs and ours wrote, when it is done
}

// figure is what one run of one side took.
type figure struct {
	took, sync, cpu time.Duration
	memory          int64 // bytes; greatest resident size
	stopped         bool  // patience was at an end
}

// whole is the time until all of it was durable.
func (f figure) whole() float64 { return (f.took + f.sync).Seconds() }

// row is what was measured of a line: one figure per round.
type row struct {
	line
	skipped      error // why it was not
	ours, theirs []figure
}

const quickRounds = 4 // as many rounds of a line that takes milliseconds

func (b *bench) measure(ctx context.Context, l line) (r row, err error) {
	r.line = l
	if l.needs != nil {
		if r.skipped = l.needs(ctx); r.skipped != nil {
			return r, nil
		}
	}
	if l.make != nil {
		if err := l.make(ctx); err != nil {
			return r, err
		}
	}
	rounds := b.o.rounds
	switch {
	case l.rounds > 0:
		rounds = min(rounds, l.rounds)
	case l.quick && !b.o.quick:
		rounds *= quickRounds
	}
	for round := range rounds {
		if err := b.round(ctx, &r, round%2 == 0); err != nil {
			return r, err
		}
	}
	return r, b.remove(l.writes)
}

// round runs both sides once; who is first changes from round to round.
func (b *bench) round(ctx context.Context, r *row, oursFirst bool) error {
	for i := range 2 {
		mine := (i == 0) == oursFirst
		if !mine && r.line.theirs == nil {
			continue
		}
		s, figures := r.line.ours, &r.ours
		if !mine {
			s, figures = *r.line.theirs, &r.theirs
		}
		f, err := b.one(ctx, r.line, s)
		if err != nil {
			return err
		}
		*figures = append(*figures, f)
		if r.check != nil && !f.stopped && len(*figures) == 1 {
			if err := r.check(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bench) one(ctx context.Context, l line, s side) (figure, error) {
	if err := b.remove(l.writes); err != nil {
		return figure{}, err
	}
	if s.setup != nil {
		if err := s.setup(ctx); err != nil {
			return figure{}, err
		}
	}
	for _, path := range l.reads {
		if err := drop(path); err != nil {
			return figure{}, err
		}
	}
	if !b.o.quick { // where others work it takes longer than all the rest
		unix.Sync()
	}
	if err := calm(ctx, b.o.calm); err != nil {
		return figure{}, err
	}
	f, err := s.run(ctx)
	if err == nil && s.unsynced && !f.stopped {
		began := time.Now()
		err = syncFile(l.writes)
		f.sync = time.Since(began)
	}
	return f, err
}

func (s side) run(ctx context.Context) (f figure, err error) {
	own, cancel := ctx, context.CancelFunc(func() {})
	if s.patience > 0 {
		own, cancel = context.WithTimeout(ctx, s.patience)
	}
	defer cancel()
	cmd := exec.CommandContext(own, s.args[0], s.args[1:]...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	began := time.Now()
	err = cmd.Run()
	f.took = time.Since(began)
	if state := cmd.ProcessState; state != nil {
		f.cpu = state.UserTime() + state.SystemTime()
		if usage, ok := state.SysUsage().(*syscall.Rusage); ok {
			f.memory = usage.Maxrss << 10
		}
	}
	switch {
	case s.patience > 0 && own.Err() != nil && ctx.Err() == nil:
		f.stopped = true
		return f, nil
	case err != nil:
		return f, fmt.Errorf("%s: %w\n%s%s", strings.Join(s.args, " "), err, out.Bytes(), errs.Bytes())
	case s.inside:
		f.took, err = told(out.Bytes())
	case s.then != nil:
		began = time.Now()
		err = s.then()
		f.took += time.Since(began)
	}
	return f, err
}

// told is the time that vhdxctl bench --json has measured.
func told(out []byte) (time.Duration, error) {
	var r struct {
		Seconds float64 `json:"seconds"`
	}
	if err := json.Unmarshal(out, &r); err != nil {
		return 0, err
	}
	if r.Seconds <= 0 {
		return 0, fmt.Errorf("no time in %s", out)
	}
	return time.Duration(r.Seconds * float64(time.Second)), nil
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

func command(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
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

// syncFile makes a new file durable, its name included.
func syncFile(path string) error {
	for _, path := range []string{path, filepath.Dir(path)} {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return nil
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
