package drain

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/kubeapi"
)

var (
	// ErrStillAttached: the time was up before the last volume was detached.
	ErrStillAttached = errors.New("volumes are still attached")
	// ErrRefused: the API server does not let this account read what is needed.
	ErrRefused = errors.New("the API server refuses")
)

const (
	// askPatience is how long it may take to learn whether the node is being
	// emptied. An API server that is away must not hold up a plain restart.
	askPatience = 10 * time.Second
	// retryAfter is the pause before a request that failed is made again.
	retryAfter = time.Second
)

// removers are the taints by which a node's removal shows: kubectl cordon and
// drain, the cluster autoscaler, and Karpenter before and since its v1.
var removers = []string{
	"node.kubernetes.io/unschedulable",
	"ToBeDeletedByClusterAutoscaler",
	"karpenter.sh/disruption",
	"karpenter.sh/disrupted",
}

// Waiter waits for the attachments of one driver on one node.
type Waiter struct {
	API    *kubeapi.Client
	Node   string
	Driver string
	Note   func(text string) // tells a person what it does; may be called at any time
}

// Wait returns nil at once if the node is not being emptied, and otherwise when
// no volume of the driver is attached to it any more. If the context ends
// before, the error is ErrStillAttached with the attachments that are left, or
// the reason why the API server could not be asked.
func (w *Waiter) Wait(ctx context.Context) error {
	why, err := w.emptied(ctx)
	if err != nil {
		return err
	}
	if why == "" {
		w.Note("node " + w.Node + " is not being emptied: nothing to wait for")
		return nil
	}
	w.Note("node " + w.Node + " is being emptied: " + why)
	left := map[string]bool{}
	for {
		err := w.untilNone(ctx, left)
		if err == nil {
			w.Note("no volume is attached to " + w.Node + " any more")
			return nil
		}
		if errors.Is(err, ErrRefused) {
			return err
		}
		if !sleep(ctx, retryAfter) {
			return unfinished(left, err)
		}
	}
}

// emptied says why the node's volumes are about to leave it; "" if they stay.
func (w *Waiter) emptied(ctx context.Context) (why string, err error) {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	for {
		n, err := w.node(ctx)
		switch {
		case err == nil:
			return n.removal(), nil
		case answered(err, http.StatusNotFound):
			return "it has been removed", nil
		case errors.Is(err, ErrRefused):
			return "", err
		}
		if !sleep(ctx, retryAfter) {
			return "", fmt.Errorf("ask whether node %s is being emptied: %w", w.Node, err)
		}
	}
}

func (n *node) removal() string {
	for _, t := range n.Spec.Taints {
		if slices.Contains(removers, t.Key) {
			return "it has the taint " + t.Key
		}
	}
	if n.Spec.Unschedulable {
		return "it is cordoned"
	}
	return ""
}

// untilNone fills left with the attachments there are and returns nil when
// there is none. Any other end of the watch is an error, and the list has to be
// made anew.
func (w *Waiter) untilNone(ctx context.Context, left map[string]bool) error {
	clear(left)
	version, err := w.list(ctx, func(a attachment) { w.see(a, left) })
	if err != nil {
		return err
	}
	if len(left) == 0 {
		return nil
	}
	w.Note(fmt.Sprintf("waits for %d volume attachments: %s", len(left), names(left)))
	return w.watch(ctx, version, func(a attachment, deleted bool) (done bool) {
		if deleted {
			delete(left, a.Metadata.Name)
		} else {
			w.see(a, left)
		}
		return len(left) == 0
	})
}

func (w *Waiter) see(a attachment, left map[string]bool) {
	if a.Spec.Attacher == w.Driver && a.Spec.NodeName == w.Node {
		left[a.Metadata.Name] = true
	}
}

func unfinished(left map[string]bool, err error) error {
	if len(left) == 0 {
		return fmt.Errorf("watch the volume attachments: %w", err)
	}
	return fmt.Errorf("%w: %s; pods of the node still use them, or their detaching fails: kubectl describe volumeattachment says which", ErrStillAttached, names(left))
}

// names lists the first few.
func names(left map[string]bool) string {
	const most = 5
	sorted := slices.Sorted(maps.Keys(left))
	if len(sorted) > most {
		return strings.Join(sorted[:most], ", ") + fmt.Sprintf(" and %d more", len(sorted)-most)
	}
	return strings.Join(sorted, ", ")
}

func sleep(ctx context.Context, d time.Duration) (more bool) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
