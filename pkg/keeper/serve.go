package keeper

import "context"

// Options of a keeper.
type Options struct {
	// Socket is where it listens. Its directory must exist.
	Socket string
	// Build names this build to clients.
	Build string
	// Stop asks the keeper to end, as SIGTERM does: it does if it holds
	// nothing, else it says through Note what would be lost and goes on.
	Stop <-chan struct{}
	// Bounds; 0: 1,024 items, 4 files for each, 1 GiB of memfds.
	MaxItems, MaxFiles int
	MaxBytes           int64
	// Note, if set, is told what an operator should know. It must not block.
	Note func(text string)
}

// Serve is the keeper's whole life. It returns when the context ends, whatever
// is held then, or when it was asked to stop and did.
func Serve(ctx context.Context, o Options) error {
	return serve(ctx, o)
}

func serve(context.Context, Options) error { return ErrUnavailable }
