package wire

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// fake is a holder that remembers what it was asked.
type fake struct {
	mu    sync.Mutex
	calls []string
	err   error
	// wait, if set, holds every call up, after it has said so in begun.
	wait, begun chan struct{}
	panics      bool
}

func (f *fake) note(call, volume string) error {
	f.mu.Lock()
	f.calls = append(f.calls, call+" "+volume)
	err, panics := f.err, f.panics
	f.mu.Unlock()
	if f.wait != nil {
		f.begun <- struct{}{}
		<-f.wait
	}
	if panics {
		panic("as told")
	}
	return err
}

func (f *fake) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.calls)
}

func (f *fake) Freeze(_ context.Context, v, token string, limit time.Duration) (string, error) {
	return control.ConsistencyFilesystem, f.note("freeze "+token+" "+limit.String(), v)
}

func (f *fake) Cut(_ context.Context, v, s string, o control.CutOptions) (control.CutResult, error) {
	err := f.note("cut "+s, v)
	return control.CutResult{Pause: 5 * time.Millisecond, Frozen: o.Limit, Consistency: control.ConsistencyCrash}, err
}
func (f *fake) Thaw(_ context.Context, v, token string) error { return f.note("thaw "+token, v) }
func (f *fake) Follow(_ context.Context, v string) error      { return f.note("follow", v) }

func (f *fake) Report(_ context.Context, v string) (control.Report, error) {
	err := f.note("report", v)
	return control.Report{Entries: []control.Entry{{Status: control.StatusDegraded, Reason: "PoolNearlyFull", Message: "5 % left"}}}, err
}

// dir is a directory for a pool, in memory where that is possible.
func dir(t *testing.T) string {
	t.Helper()
	d, err := os.MkdirTemp("/dev/shm", "wire-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(d) })
	return d
}

// pools opens directories as pools, by name: once for each process of a test.
func pools(t *testing.T, dirs map[string]string) *pool.Set {
	t.Helper()
	var all []*pool.Pool
	for name, d := range dirs {
		p, err := pool.Open(pool.Options{Name: name, Dir: d, Overcommit: 1000})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	s, err := pool.NewSet(all...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func volume(t *testing.T, s *pool.Set, in string) string {
	t.Helper()
	v, err := s.CreateVolume(t.Context(), pool.Spec{Name: "v", Pool: in, Size: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	return v.ID
}

func identity(t *testing.T) *Identity {
	t.Helper()
	id, err := NewIdentity("test")
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// site is a node, named n1, that serves its pools, and what it has seen.
type site struct {
	set    *pool.Set
	id     *Identity
	holder *fake
	server *Server
	addr   string

	mu      sync.Mutex
	refused []error
	failed  []error
}

var errTeapot = errors.New("teapot")

func toStatus(err error) error {
	switch {
	case errors.Is(err, control.ErrNotHeld):
		return status.Error(codes.Aborted, err.Error())
	case errors.Is(err, pool.ErrNotFound):
		return status.Error(codes.NotFound, err.Error())
	case errors.Is(err, errTeapot):
		return status.Error(codes.OutOfRange, err.Error())
	}
	return status.Error(codes.Internal, err.Error())
}

func startSite(t *testing.T, dirs map[string]string) *site {
	t.Helper()
	s := &site{set: pools(t, dirs), id: identity(t), holder: &fake{}}
	s.serve(t)
	return s
}

func (s *site) serve(t *testing.T) {
	t.Helper()
	s.server = NewServer(ServerOptions{
		Identity: s.id, Pools: s.set, Holder: s.holder, Status: toStatus,
		Refused: func(_ net.Addr, err error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.refused = append(s.refused, err)
		},
		Failed: func(err error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.failed = append(s.failed, err)
		},
	})
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	server, ended := s.server, make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	t.Cleanup(func() {
		server.grpc.Stop()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	s.publish(t)
}

func (s *site) publish(t *testing.T) {
	t.Helper()
	if err := s.announce(t.Context(), s.id.Certificates()); err != nil {
		t.Fatal(err)
	}
}

func (s *site) announce(ctx context.Context, all []pool.Certificate) error {
	return s.set.RegisterNode(ctx, pool.Node{ID: "n1", Endpoints: []string{s.addr}, Certificates: all})
}

// office is a controller on its pools.
type office struct {
	set    *pool.Set
	id     *Identity
	client *Client
}

func openOffice(t *testing.T, dirs map[string]string) *office {
	t.Helper()
	o := &office{set: pools(t, dirs), id: identity(t)}
	o.client = NewClient(ClientOptions{Identity: o.id, Nodes: o.set})
	t.Cleanup(func() { o.client.Close() })
	if err := o.announce(t.Context(), o.id.Certificates()); err != nil {
		t.Fatal(err)
	}
	return o
}

func (o *office) announce(ctx context.Context, all []pool.Certificate) error {
	return announceController(ctx, o.set, all)
}

func announceController(ctx context.Context, set *pool.Set, all []pool.Certificate) error {
	var errs []error
	for _, c := range all {
		errs = append(errs, set.RegisterController(ctx, pool.Controller{Certificate: c, Since: time.Now()}))
	}
	return errors.Join(errs...)
}

func (o *office) on() control.Holder { return o.client.On("n1") }
