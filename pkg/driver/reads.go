package driver

import (
	"context"
	"fmt"
)

// maxReads is how many calls that only read the pools run at once. They are
// polled: when a share hangs each poll would leave one more thread in the
// kernel until it comes back.
const maxReads = 32

// reads bounds the calls that change nothing but touch the share.
type reads chan struct{}

// read does work beside its caller and waits for it as long as the caller
// does. Work that hangs keeps its place; when there is none left the share is
// taken for unreachable at once.
func read[T any](ctx context.Context, places reads, work func(context.Context) (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	var zero T
	select {
	case places <- struct{}{}:
	default:
		return zero, fmt.Errorf("%w: %d earlier reads have not come back", errShareHangs, cap(places))
	}
	done := make(chan result, 1)
	go func() {
		defer func() { <-places }()
		var r result
		r.err = guard(ctx, func() (err error) {
			r.value, err = work(ctx)
			return err
		})
		done <- r
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return zero, fmt.Errorf("wait for the share: %w", ctx.Err())
	}
}
