package fuseloop

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/helper"
)

// leftChildren remembers the child of each volume that was abandoned in the
// kernel. While it is there another one would get stuck behind it: so a volume
// whose storage hangs costs one process, however often it is asked for.
type leftChildren struct {
	mu    sync.Mutex // guards byTag
	byTag map[string]*helper.StuckError
}

// blocked says which child of the volume is still stuck.
func (l *leftChildren) blocked(tag string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	stuck := l.byTag[tag]
	if stuck == nil {
		return nil
	}
	select {
	case <-stuck.Gone:
		delete(l.byTag, tag)
		return nil
	default:
		return fmt.Errorf("an earlier helper of this volume is still there: %w", stuck)
	}
}

// note remembers err if it is of a child that was abandoned.
func (l *leftChildren) note(tag string, err error) {
	stuck, ok := errors.AsType[*helper.StuckError](err)
	if !ok {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.byTag == nil {
		l.byTag = map[string]*helper.StuckError{}
	}
	l.byTag[tag] = stuck
}

// run runs a child of a volume. It takes at most the deadline and
// helper.KillGrace.
func (a *Attacher) run(ctx context.Context, tag string, c helper.Call) ([]byte, error) {
	if err := a.left.blocked(tag); err != nil {
		return nil, err
	}
	out, err := c.Run(ctx)
	a.left.note(tag, err)
	return out, err
}

// child runs one of Commands.
func (a *Attacher) child(ctx context.Context, tag string, deadline time.Duration, name string, args ...string) ([]byte, error) {
	return a.run(ctx, tag, helper.Call{Name: name, Args: args, Deadline: deadline, Self: true})
}
