package wire

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// Controllers is what a node needs of its pools to know whom to trust. A
// *pool.Set is it.
type Controllers interface {
	PoolOf(volumeID string) (string, error)
	PoolNames() []string
	ControllerIn(ctx context.Context, pool, sha256 string) (c pool.Controller, known bool, err error)
}

var (
	errStranger = errors.New("no pool served here names this certificate as a controller's")
	errEnded    = errors.New("certificate is not valid at this time; do the clocks agree?")
	errNobody   = errors.New("no certificate")
	errTooBusy  = errors.New("too many look at the pool at once")
)

const (
	// trustFor is for how long a yes of the share counts without another look,
	// and so how long a certificate works after it has been taken back. A no is
	// never kept: the certificate may be published at this moment.
	trustFor = 10 * time.Second
	// maxLooks bounds how many threads a share that hangs can take, whoever asks.
	maxLooks = 4
	maxKnown = 1024
)

// trust knows whose certificates count.
type trust struct {
	pools Controllers
	now   func() time.Time

	mu    sync.Mutex
	known map[inPool]time.Time     // until when a yes counts
	looks map[string]chan struct{} // by pool
}

// inPool is a certificate in the eyes of one pool.
type inPool struct{ pool, sha256 string }

// peerOf returns the certificate of a connection, which must be valid now. The
// handshake has proven that the peer has its key; whose it is, only its
// fingerprint says.
func peerOf(s tls.ConnectionState, now time.Time) (*x509.Certificate, error) {
	if len(s.PeerCertificates) == 0 {
		return nil, errNobody
	}
	c := s.PeerCertificates[0]
	if now.Before(c.NotBefore) || now.After(c.NotAfter) {
		return nil, fmt.Errorf("%w: it is from %v to %v", errEnded, c.NotBefore, c.NotAfter)
	}
	return c, nil
}

// connection decides whether a peer may connect: any pool will do. Each pool is
// asked by itself, so that one whose share hangs keeps nobody out of another.
func (t *trust) connection(ctx context.Context, sha256 string) error {
	names := t.pools.PoolNames()
	answers := make(chan error, len(names))
	for _, name := range names {
		go func() { answers <- t.in(ctx, name, sha256) }()
	}
	reason := errStranger
	for range names {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", errStranger, ctx.Err())
		case err := <-answers:
			if err == nil {
				return nil
			}
			if !errors.Is(err, errStranger) {
				reason = err
			}
		}
	}
	return reason
}

// volume decides whether a peer may do anything to a volume (I-CTL-1).
func (t *trust) volume(ctx context.Context, id, sha256 string) error {
	name, err := t.pools.PoolOf(id)
	if err != nil {
		return err
	}
	if err := t.in(ctx, name, sha256); err != nil {
		return fmt.Errorf("pool %s: %w", name, err)
	}
	return nil
}

// in asks one pool.
func (t *trust) in(ctx context.Context, name, sha256 string) error {
	k := inPool{name, sha256}
	looks, yes := t.remembered(k)
	if yes {
		return nil
	}
	select {
	case looks <- struct{}{}:
		defer func() { <-looks }()
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", errTooBusy, ctx.Err())
	}
	c, known, err := t.pools.ControllerIn(ctx, name, sha256)
	switch {
	case err != nil:
		return err
	case !known:
		return errStranger
	case t.now().After(c.Until):
		return fmt.Errorf("%w: the pool has it until %v", errEnded, c.Until)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.known) >= maxKnown {
		clear(t.known)
	}
	t.known[k] = t.now().Add(trustFor)
	return nil
}

func (t *trust) remembered(k inPool) (looks chan struct{}, yes bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if looks = t.looks[k.pool]; looks == nil {
		looks = make(chan struct{}, maxLooks)
		t.looks[k.pool] = looks
	}
	return looks, t.now().Before(t.known[k])
}
