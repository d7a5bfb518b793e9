package wire

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"math/big"
	"slices"
	"sync"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// A certificate lives for a week and is replaced after two thirds of it, which
// leaves more than two days for a share that cannot be written. What a process
// leaves in a pool when it dies is trusted, and lies there, no longer than that.
const (
	lifetime = 7 * 24 * time.Hour
	// early is how much sooner it is valid than it is made: clocks differ.
	early = time.Hour
)

// Identity is who this process is: a key that never leaves its memory
// (I-CTL-2), and the certificate of it.
type Identity struct {
	name string
	now  func() time.Time

	mu   sync.Mutex
	held []held // the one in use first; the others have not ended yet
}

// held is a certificate with its key.
type held struct {
	cert tls.Certificate
	pub  pool.Certificate
	made time.Time
}

// NewIdentity makes a key. name is for people who look into a certificate.
func NewIdentity(name string) (*Identity, error) {
	i := &Identity{name: name, now: time.Now}
	h, err := i.make()
	i.held = []held{h}
	return i, err
}

func (i *Identity) make() (held, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return held{}, fmt.Errorf("make a key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return held{}, fmt.Errorf("make a serial number: %w", err)
	}
	now := i.now()
	c := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: i.name[:min(len(i.name), 64)]},
		NotBefore:    now.Add(-early),
		NotAfter:     now.Add(lifetime),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		return held{}, fmt.Errorf("make a certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return held{}, fmt.Errorf("make a certificate: %w", err)
	}
	return held{
		cert: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf},
		pub:  pool.Certificate{SHA256: fingerprint(leaf), Until: leaf.NotAfter},
		made: now,
	}, nil
}

func fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

// Certificates are what peers have to know: the one in use first.
func (i *Identity) Certificates() []pool.Certificate {
	i.mu.Lock()
	defer i.mu.Unlock()
	return published(i.held)
}

func published(all []held) []pool.Certificate {
	var out []pool.Certificate
	for _, h := range all {
		out = append(out, h.pub)
	}
	return out
}

// current is the certificate in use.
func (i *Identity) current() *tls.Certificate {
	i.mu.Lock()
	defer i.mu.Unlock()
	return &i.held[0].cert
}

// Publication says how an identity is made known and kept so.
type Publication struct {
	// Publish makes these certificates known to all who have to know them, the
	// one in use first. It may fail for some and is tried again.
	Publish func(ctx context.Context, all []pool.Certificate) error
	// Failed is told why it did.
	Failed func(error)
	// Every is how often it is repeated without need; 0: never.
	Every time.Duration
}

// retryAfter is how long after a failure a certificate is published again, and
// the longest that a renewal is late by itself.
const (
	retryAfter = 10 * time.Second
	lookEvery  = 10 * time.Minute
)

// Keep publishes the identity and renews it in time, until ctx ends.
func (i *Identity) Keep(ctx context.Context, p Publication) {
	published := time.Time{}
	for {
		wait := lookEvery
		if p.Every > 0 {
			wait = min(wait, p.Every)
		}
		var err error
		if i.due() {
			err = i.renew(ctx, p.Publish)
			published = time.Time{} // to say what is in use now
		}
		if err == nil && (published.IsZero() || p.Every > 0 && i.now().Sub(published) >= p.Every) {
			if err = p.Publish(ctx, i.Certificates()); err == nil {
				published = i.now()
			}
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			p.Failed(err)
			wait = retryAfter
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

func (i *Identity) due() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.now().Sub(i.held[0].made) >= lifetime*2/3
}

// renew replaces the certificate in use: it is published before it is used, and
// used although it could not be published everywhere only when the old one is about to end.
func (i *Identity) renew(ctx context.Context, publish func(context.Context, []pool.Certificate) error) error {
	next, err := i.make()
	if err != nil {
		return err
	}
	i.mu.Lock()
	old := slices.DeleteFunc(slices.Clone(i.held), func(h held) bool { return i.now().After(h.pub.Until) })
	i.mu.Unlock()
	err = publish(ctx, append(published(old), next.pub))
	if err != nil && len(old) > 0 && i.now().Before(old[0].pub.Until.Add(-lifetime/10)) {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.held = append([]held{next}, old...)
	return err
}
