package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// progress is one line on a terminal, and a line now and then elsewhere.
type progress struct {
	w        io.Writer
	terminal bool

	mu    sync.Mutex // guards what follows
	shown bool
	last  time.Time
}

func newProgress(w io.Writer) *progress {
	p := &progress{w: w, last: time.Now()}
	if f, ok := w.(*os.File); ok {
		_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
		p.terminal = err == nil
	}
	return p
}

// quiet is how often a line is written where there is no terminal.
const quiet = 30 * time.Second

func (p *progress) show(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.terminal:
		fmt.Fprintf(p.w, "\r\x1b[K"+format, args...)
		p.shown = true
	case time.Since(p.last) >= quiet:
		fmt.Fprintf(p.w, format+"\n", args...)
		p.last = time.Now()
	}
}

// say writes a line that stays.
func (p *progress) say(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shown {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.shown = false
	}
	fmt.Fprintf(p.w, format+"\n", args...)
}
