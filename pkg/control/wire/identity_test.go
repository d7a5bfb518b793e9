package wire

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"testing"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

func TestIdentity(t *testing.T) {
	id := identity(t)
	c := id.current()
	key, ok := c.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(c.Leaf.PublicKey) || c.Leaf.CheckSignature(c.Leaf.SignatureAlgorithm, c.Leaf.RawTBSCertificate, c.Leaf.Signature) != nil {
		t.Fatal("the certificate is not of the key")
	}
	if pub := id.Certificates(); len(pub) != 1 || pub[0].SHA256 != fingerprint(c.Leaf) || !pub[0].Until.Equal(c.Leaf.NotAfter) {
		t.Fatalf("%+v", pub)
	}
	if c.Leaf.NotAfter.Sub(c.Leaf.NotBefore) != lifetime+early {
		t.Fatalf("from %v to %v", c.Leaf.NotBefore, c.Leaf.NotAfter)
	}
}

// TestRenew: what is new is published before it is used, what is old stays until
// it ends, and a pool that cannot be written delays it only while there is time.
func TestRenew(t *testing.T) {
	id := identity(t)
	start := time.Now()
	now := start
	id.now = func() time.Time { return now }
	first := id.Certificates()[0]
	ctx := t.Context()

	if id.due() {
		t.Fatal("due at once")
	}
	now = start.Add(lifetime*2/3 + time.Minute)
	if !id.due() {
		t.Fatal("not due after two thirds")
	}
	full := errors.New("no space")
	if err := id.renew(ctx, func(context.Context, []pool.Certificate) error { return full }); !errors.Is(err, full) || id.Certificates()[0] != first || !id.due() {
		t.Fatalf("not published, and yet in use: %v", err)
	}
	var told []pool.Certificate
	err := id.renew(ctx, func(_ context.Context, all []pool.Certificate) error {
		told = all
		if id.Certificates()[0] != first {
			t.Error("in use before it is published")
		}
		return nil
	})
	if got := id.Certificates(); err != nil || len(told) != 2 || told[0] != first || len(got) != 2 || got[0] != told[1] || got[1] != first || id.due() {
		t.Fatalf("%v: told %v, has %v", err, told, got)
	}

	second := id.Certificates()[0]
	now = second.Until.Add(-lifetime / 20)
	if err := id.renew(ctx, func(context.Context, []pool.Certificate) error { return full }); !errors.Is(err, full) || id.Certificates()[0] == second {
		t.Fatalf("kept to its end for a pool that cannot be written: %v", err)
	}
	if got := id.Certificates(); len(got) != 2 || got[1] != second {
		t.Fatalf("the first one has ended: %v", got)
	}
}

// TestKeep: it publishes until that succeeds, and ends with its context.
func TestKeep(t *testing.T) {
	id := identity(t)
	ctx, cancel := context.WithCancel(t.Context())
	calls, failures := 0, 0
	id.Keep(ctx, Publication{
		Publish: func(_ context.Context, all []pool.Certificate) error {
			if calls++; len(all) != 1 || all[0] != id.Certificates()[0] {
				t.Errorf("%v", all)
			}
			cancel()
			return nil
		},
		Failed: func(error) { failures++ },
	})
	if calls != 1 || failures != 0 {
		t.Fatalf("%d calls, %d failures", calls, failures)
	}
}
