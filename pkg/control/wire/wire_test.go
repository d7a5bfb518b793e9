package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// pair is a node and a controller that share the pools a and b.
func pair(t *testing.T) (s *site, o *office, inA, inB string) {
	t.Helper()
	dirs := map[string]string{"a": dir(t), "b": dir(t)}
	s = startSite(t, dirs)
	o = openOffice(t, dirs)
	return s, o, volume(t, s.set, "a"), volume(t, s.set, "b")
}

func TestCalls(t *testing.T) {
	s, o, inA, inB := pair(t)
	ctx := t.Context()
	var want []string
	for _, v := range []string{inA, inB} {
		c, err := o.on().Freeze(ctx, v, "tok", 3*time.Second)
		if c != control.ConsistencyFilesystem || err != nil {
			t.Fatalf("Freeze: %q, %v", c, err)
		}
		r, err := o.on().Cut(ctx, v, "s1", control.CutOptions{Freeze: true, Limit: time.Second})
		if d := cmp.Diff(control.CutResult{Pause: 5 * time.Millisecond, Frozen: time.Second, Consistency: control.ConsistencyCrash}, r); d != "" || err != nil {
			t.Fatalf("Cut: %v\n%s", err, d)
		}
		if err := errors.Join(o.on().Thaw(ctx, v, "tok"), o.on().Follow(ctx, v)); err != nil {
			t.Fatal(err)
		}
		rep, err := o.on().Report(ctx, v)
		if err != nil || len(rep.Entries) != 1 || rep.Entries[0].Reason != "PoolNearlyFull" {
			t.Fatalf("Report: %+v, %v", rep, err)
		}
		want = append(want, "freeze tok 3s "+v, "cut s1 "+v, "thaw tok "+v, "follow "+v, "report "+v)
	}
	if d := cmp.Diff(want, s.holder.calls); d != "" {
		t.Fatal(d)
	}
	if n := len(o.client.links); n != 2 {
		t.Fatalf("%d connections for two pools", n)
	}
}

// TestErrors: the node's code and text arrive, and the sentinels that the caller
// acts on.
func TestErrors(t *testing.T) {
	s, o, v, _ := pair(t)
	ctx := t.Context()
	for _, tt := range []struct {
		err  error
		code codes.Code
		is   error
	}{
		{fmt.Errorf("volume: %w", errTeapot), codes.OutOfRange, nil},
		{errors.New("anything " + strings.Repeat("x", 10000)), codes.Internal, nil},
		{fmt.Errorf("volume: %w", control.ErrNotHeld), codes.Aborted, control.ErrNotHeld},
		{control.ErrFrozenNoMore, codes.Internal, control.ErrFrozenNoMore},
	} {
		s.holder.err = tt.err
		_, err := o.on().Cut(ctx, v, "s", control.CutOptions{})
		e, ok := errors.AsType[*Error](err)
		if !ok || e.Code != tt.code || e.Node != "n1" || !strings.HasPrefix(tt.err.Error(), e.Text) || len(e.Text) > maxText {
			t.Fatalf("%.100v: %.200v", tt.err, err)
		}
		for _, is := range []error{control.ErrNotHeld, control.ErrFrozenNoMore, control.ErrUnreachable} {
			if errors.Is(err, is) != errors.Is(tt.is, is) {
				t.Errorf("%.100v: is %v: %v", tt.err, is, errors.Is(err, is))
			}
		}
	}
	s.holder.err = nil
	gone := v[:len(v)-1] + "0"
	if gone == v {
		gone = v[:len(v)-1] + "1"
	}
	if err := o.on().Follow(ctx, gone); err != nil {
		t.Fatalf("whether the volume is there is the holder's to say: %v", err)
	}
	if err := o.on().Follow(ctx, "no-such-id"); !errors.Is(err, pool.ErrNotFound) {
		t.Fatalf("an id of no pool: %v", err)
	}
	if _, err := o.on().Freeze(ctx, v, "t", 0); !errors.Is(err, errMalformed) {
		t.Fatalf("a freeze without end: %v", err)
	}
}

func TestPanicStaysAtHome(t *testing.T) {
	s, o, v, _ := pair(t)
	s.holder.panics = true
	err := o.on().Follow(t.Context(), v)
	if e, ok := errors.AsType[*Error](err); !ok || e.Code != codes.Internal || strings.Contains(e.Text, "as told") {
		t.Fatalf("%v", err)
	}
	s.holder.panics = false
	if err := o.on().Follow(t.Context(), v); err != nil {
		t.Fatalf("the next call: %v", err)
	}
	if len(s.failed) != 1 || !strings.Contains(s.failed[0].Error(), "as told") {
		t.Fatalf("%v", s.failed)
	}
}

// TestRotation: both sides replace their certificates while calls go on; none fails.
func TestRotation(t *testing.T) {
	s, o, inA, inB := pair(t)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for _, v := range []string{inA, inB} {
		for range 3 {
			wg.Go(func() {
				for ctx.Err() == nil {
					if err := o.on().Follow(t.Context(), v); err != nil {
						t.Errorf("during a rotation: %v", err)
						return
					}
				}
			})
		}
	}
	seen := map[string]bool{}
	for range 10 {
		before := s.holder.count()
		if err := errors.Join(s.id.renew(t.Context(), s.announce), o.id.renew(t.Context(), o.announce)); err != nil {
			t.Fatal(err)
		}
		s.publish(t)
		seen[s.id.Certificates()[0].SHA256] = true
		o.client.drop()
		for s.holder.count() < before+4 && !t.Failed() {
			if err := o.on().Follow(t.Context(), inA); err != nil {
				t.Fatalf("after a rotation: %v", err)
			}
		}
		// In days the older ones would have ended.
		s.id.forget()
		o.id.forget()
	}
	cancel()
	wg.Wait()
	if len(seen) != 10 {
		t.Fatalf("%d certificates were used", len(seen))
	}
}

func (i *Identity) forget() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.held = i.held[:2]
}

// drop has the next calls make new connections.
func (c *Client) drop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, l := range c.links {
		c.retire(k, l)
	}
}

// TestNodeDown: a node that is gone is unreachable, and when it is back, at
// another address and with another certificate, it is asked there at once.
func TestNodeDown(t *testing.T) {
	s, o, v, _ := pair(t)
	ctx := t.Context()
	if err := o.on().Follow(ctx, v); err != nil {
		t.Fatal(err)
	}
	if err := s.server.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		err := o.on().Follow(ctx, v)
		if !errors.Is(err, control.ErrUnreachable) || !strings.Contains(err.Error(), s.addr) || !strings.Contains(err.Error(), "node n1") {
			t.Fatalf("%v", err)
		}
	}
	s.id = identity(t)
	s.serve(t)
	if err := o.on().Follow(ctx, v); err != nil {
		t.Fatalf("it is back: %v", err)
	}
	if err := o.client.On("n2").Follow(ctx, v); !errors.Is(err, control.ErrUnreachable) || !errors.Is(err, pool.ErrNoNode) {
		t.Fatalf("a node that nobody knows: %v", err)
	}
	if err := s.set.RegisterNode(ctx, pool.Node{ID: "n2"}); err != nil {
		t.Fatal(err)
	}
	if err := o.client.On("n2").Follow(ctx, v); !errors.Is(err, control.ErrUnreachable) || !strings.Contains(err.Error(), "says not where") {
		t.Fatalf("a node that does not serve: %v", err)
	}
}

// TestSecondAddress: an address that does not answer is passed over.
func TestSecondAddress(t *testing.T) {
	s, o, v, _ := pair(t)
	n := pool.Node{ID: "n1", Endpoints: []string{"127.0.0.1:1", s.addr}, Certificates: s.id.Certificates()}
	if err := s.set.RegisterNode(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	if err := o.on().Follow(t.Context(), v); err != nil {
		t.Fatal(err)
	}
}

// TestHangingNode: a node that accepts and says nothing costs its caller what the
// caller is willing to wait, and is unreachable.
func TestHangingNode(t *testing.T) {
	s, o, v, _ := pair(t)
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s.addr = l.Addr().String()
	s.publish(t)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		cancel()               // the caller's patience ends here
		io.Copy(io.Discard, c) //nolint:errcheck // until the caller hangs up
	}()
	if err := o.on().Follow(ctx, v); !errors.Is(err, control.ErrUnreachable) {
		t.Fatalf("%v", err)
	}
	if s.holder.count() > 0 {
		t.Fatal("somebody was asked")
	}
}

// TestCallerGone: the work goes on to its end without its caller, who does not
// know how it ended (I-CTL-3, I-CTL-5).
func TestCallerGone(t *testing.T) {
	for name, leave := range map[string]func() (context.Context, context.CancelFunc){
		"canceled": func() (context.Context, context.CancelFunc) { return context.WithCancel(t.Context()) },
		"deadline": func() (context.Context, context.CancelFunc) {
			return context.WithTimeout(t.Context(), 100*time.Millisecond)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, o, v, _ := pair(t)
			s.holder.wait, s.holder.begun = make(chan struct{}), make(chan struct{}, 1)
			ctx, cancel := leave()
			defer cancel()
			answer := make(chan error, 1)
			go func() { answer <- o.on().Follow(ctx, v) }()
			if name == "canceled" {
				<-s.holder.begun
				cancel()
			}
			if err := <-answer; !errors.Is(err, control.ErrUnreachable) {
				t.Fatalf("%v", err)
			}
			close(s.holder.wait)
			if err := s.server.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestBounded(t *testing.T) {
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := newBounded(l, 1)
	dial := func() net.Conn {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	dial()
	first, err := b.Accept()
	if err != nil {
		t.Fatal(err)
	}
	dial()
	second := make(chan error, 1)
	go func() {
		c, err := b.Accept()
		if err == nil {
			err = c.Close()
		}
		second <- err
	}()
	select {
	case err := <-second:
		t.Fatalf("more than one at a time: %v", err)
	default:
	}
	for range 2 {
		first.Close() // twice gives one place back
	}
	if err := <-second; err != nil {
		t.Fatal(err)
	}
	if len(b.slots) != 0 {
		t.Fatalf("%d places taken", len(b.slots))
	}
	b.slots <- struct{}{}
	b.Close()
	if _, err := b.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Fatalf("%v", err)
	}
}

func TestEndpoints(t *testing.T) {
	at := func(s string) net.Addr { return net.TCPAddrFromAddrPort(mustPort(t, s)) }
	for _, tt := range []struct {
		listen, advertise string
		want              []string // nil: refused
	}{
		{"127.0.0.1:9811", "", []string{"127.0.0.1:9811"}},
		{"[::]:9811", "10.1.2.3", []string{"10.1.2.3:9811"}},
		{"[::]:9811", "10.1.2.3,fd00::1", []string{"10.1.2.3:9811", "[fd00::1]:9811"}},
		{"[::]:9811", "10.1.2.3:30811", []string{"10.1.2.3:30811"}},
		{"[::]:9811", "host", nil},
		{"[::]:9811", "0.0.0.0", nil},
		{"[::]:9811", "10.1.2.3:0", nil},
		{"[::]:9811", "10.1.2.3,", nil},
		{"[::]:9811", "1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1", nil},
	} {
		got, err := Endpoints(at(tt.listen), tt.advertise)
		if d := cmp.Diff(tt.want, got); d != "" || (err == nil) != (tt.want != nil) || err != nil && !errors.Is(err, ErrAddress) {
			t.Errorf("%s, %q: %v\n%s", tt.listen, tt.advertise, err, d)
		}
	}
	got, err := Endpoints(at("[::]:9811"), "")
	if err != nil || len(got) == 0 || len(got) > maxAddresses {
		t.Fatalf("this machine: %v, %v", got, err)
	}
}
