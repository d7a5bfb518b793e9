package wire

import (
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

func mustPort(t *testing.T, s string) netip.AddrPort {
	t.Helper()
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// TestStrangers: whoever is not named by the volume's own pool, now, gets
// nothing (I-CTL-1). Each of them knows the node, and its pools' volumes.
func TestStrangers(t *testing.T) {
	dirs := map[string]string{"a": dir(t), "b": dir(t)}
	s := startSite(t, dirs)
	inA, inB := volume(t, s.set, "a"), volume(t, s.set, "b")
	ctx := t.Context()
	for name, tt := range map[string]struct {
		publish func(t *testing.T, id *Identity)
		volume  string
	}{
		"a certificate that nobody published": {publish: func(*testing.T, *Identity) {}},
		"one that is published in another pool": {publish: func(t *testing.T, id *Identity) {
			if err := announceController(ctx, pools(t, map[string]string{"c": dir(t)}), id.Certificates()); err != nil {
				t.Fatal(err)
			}
		}},
		"a controller of pool a, for a volume of pool b": {volume: inB, publish: func(t *testing.T, id *Identity) {
			if err := announceController(ctx, pools(t, map[string]string{"a": dirs["a"]}), id.Certificates()); err != nil {
				t.Fatal(err)
			}
		}},
		"one that has ended": {publish: func(t *testing.T, id *Identity) {
			past := &Identity{now: func() time.Time { return time.Now().Add(-lifetime - time.Minute) }}
			old, err := past.make()
			if err != nil {
				t.Fatal(err)
			}
			id.held = []held{old}
			if err := announceController(ctx, s.set, id.Certificates()); err != nil {
				t.Fatal(err)
			}
		}},
		"one that ends by the pool's word": {publish: func(t *testing.T, id *Identity) {
			c := id.Certificates()
			c[0].Until = time.Now().Add(-time.Minute)
			if err := announceController(ctx, s.set, c); err != nil {
				t.Fatal(err)
			}
		}},
		"one that was withdrawn": {publish: func(t *testing.T, id *Identity) {
			err := errors.Join(announceController(ctx, s.set, id.Certificates()), s.set.WithdrawController(ctx, id.Certificates()[0].SHA256))
			if err != nil {
				t.Fatal(err)
			}
		}},
		"another node": {publish: func(t *testing.T, id *Identity) {
			if err := s.set.RegisterNode(ctx, pool.Node{ID: "n2", Endpoints: []string{"127.0.0.1:1"}, Certificates: id.Certificates()}); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			id := identity(t)
			nodes := pools(t, dirs)
			tt.publish(t, id)
			c := NewClient(ClientOptions{Identity: id, Nodes: nodes})
			defer c.Close()
			v := inA
			if tt.volume != "" {
				v = tt.volume
			}
			for i, err := range everything(t, c.On("n1"), v) {
				if !errors.Is(err, control.ErrUnreachable) {
					t.Errorf("call %d: %v", i, err)
				}
			}
			if s.holder.count() > 0 {
				t.Fatalf("the holder was asked: %v", s.holder.calls)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if len(s.refused) == 0 {
				t.Error("nobody is told")
			}
			s.refused = nil
		})
	}
}

func everything(t *testing.T, h control.Holder, v string) (errs []error) {
	ctx := t.Context()
	_, err := h.Freeze(ctx, v, "t", time.Second)
	errs = append(errs, err)
	_, err = h.Cut(ctx, v, "s", control.CutOptions{})
	errs = append(errs, err, h.Thaw(ctx, v, "t"), h.Follow(ctx, v))
	_, err = h.Report(ctx, v)
	return append(errs, err)
}

// TestNoCertificate: without one the handshake fails, before a byte of HTTP.
func TestNoCertificate(t *testing.T) {
	s := startSite(t, map[string]string{"a": dir(t)})
	d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13}} //nolint:gosec // a stranger does not care
	c, err := d.DialContext(t.Context(), "tcp", s.addr)
	if err == nil { // TLS 1.3: the client is done first and learns of it by reading
		defer c.Close()
		_, err = c.Read(make([]byte, 1))
	}
	if err == nil || !strings.Contains(err.Error(), "certificate required") {
		t.Fatalf("%v", err)
	}
	plain, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if _, err := plain.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 512)
	if n, _ := plain.Read(answer); n > 0 && answer[0] != 21 { // a TLS alert
		t.Fatalf("without TLS: %q", answer[:n])
	}
}

// TestImpostor: something else listens where the node did. It gets nothing, not
// even a request, and makes nobody believe in an answer.
func TestImpostor(t *testing.T) {
	dirs := map[string]string{"a": dir(t)}
	s, o := startSite(t, dirs), openOffice(t, dirs)
	v := volume(t, s.set, "a")
	other := startSite(t, map[string]string{"a": dirs["a"]})
	s.addr = other.addr // the node's certificate, another's address
	s.publish(t)
	err := o.on().Follow(t.Context(), v)
	if !errors.Is(err, control.ErrUnreachable) || !strings.Contains(err.Error(), errNotTheNode.Error()) {
		t.Fatalf("%v", err)
	}
	// Nor does it help to be trusted in another pool: each pool's word is its own.
	if s.holder.count()+other.holder.count() > 0 {
		t.Fatal("somebody was asked")
	}
}

// TestWithdrawnWhileConnected: an open connection does not outlive the trust
// in who has it by more than the cache.
func TestWithdrawnWhileConnected(t *testing.T) {
	s, o, v, _ := pair(t)
	ctx := t.Context()
	if err := o.on().Follow(ctx, v); err != nil {
		t.Fatal(err)
	}
	if err := s.set.WithdrawController(ctx, o.id.Certificates()[0].SHA256); err != nil {
		t.Fatal(err)
	}
	s.server.trust.mu.Lock()
	clear(s.server.trust.known) // as time does
	s.server.trust.mu.Unlock()
	if err := o.on().Follow(ctx, v); !errors.Is(err, control.ErrUnreachable) {
		t.Fatalf("%v", err)
	}
	if err := o.announce(ctx, o.id.Certificates()); err != nil {
		t.Fatal(err)
	}
	if err := o.on().Follow(ctx, v); err != nil {
		t.Fatalf("a no is not kept: %v", err)
	}
}
