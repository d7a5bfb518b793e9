package lease

import (
	"fmt"
	"os"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/fsx"
)

// Peek reports whether anybody has a lease on image name, and who as far as is
// recorded. Unlike Claim it takes nothing, so that it cannot be in the way of
// an Acquire. f is any description of the image but that of a lease.
func (l *OFD) Peek(name string, f *os.File) (Holder, bool, error) {
	held, err := fsx.Locked(f, fsx.Whole)
	if err != nil {
		return Holder{}, false, fmt.Errorf("look at the lease of %s: %w", f.Name(), err)
	}
	if !held {
		return Holder{}, false, nil
	}
	return l.recorded(name), true, nil
}
