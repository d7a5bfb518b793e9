package driver

import (
	"cmp"
	"context"
	"errors"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/node"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// fake stands in for the pools and the node manager in tests of what this
// package itself does: checking, translating, mapping errors, running work
// beside callers. It answers what it is told to and remembers what it was
// asked; how pools and nodes behave is tested in their packages and, through
// the whole plugin, in test/sanity.
type fake struct {
	mu      sync.Mutex
	calls   []any
	volumes map[string]pool.Volume
	err     error                 // what every call answers
	hold    chan struct{}         // if set, mutating calls wait for it
	seen    func(context.Context) // if set, told the context of mutating calls
	stats   node.Stats
	size    int64

	health fakeHealth

	snapshot  pool.Snapshot
	snapshots []pool.Snapshot
}

func newFake() *fake { return &fake{volumes: make(map[string]pool.Volume)} }

func (f *fake) did(ctx context.Context, call any) error {
	if f.seen != nil {
		f.seen(ctx)
	}
	if f.hold != nil {
		<-f.hold
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, call)
	if e, ok := errors.AsType[panicking](f.err); ok {
		panic(string(e))
	}
	return f.err
}

type panicking string

func (p panicking) Error() string { return string(p) }

func (f *fake) last(t *testing.T) any {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.calls) == 0 {
		t.Fatalf("nothing was called")
	}
	return f.calls[len(f.calls)-1]
}

func (f *fake) CreateVolume(ctx context.Context, spec pool.Spec) (pool.Volume, error) {
	if err := f.did(ctx, spec); err != nil {
		return pool.Volume{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	v := pool.Volume{ID: "id-" + spec.Name, Name: spec.Name, Pool: spec.Pool, Size: cmp.Or(spec.Size, 1<<30), Params: spec.Params}
	f.volumes[v.ID] = v
	return v, nil
}

func (f *fake) DeleteVolume(ctx context.Context, id string) error { return f.did(ctx, id) }

func (f *fake) Volume(_ context.Context, id string) (pool.Volume, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	v, ok := f.volumes[id]
	if !ok {
		return v, pool.ErrNotFound
	}
	return v, f.err
}

func (f *fake) List(ctx context.Context, token string, max int) ([]pool.Volume, string, error) {
	if err := f.did(ctx, [2]any{token, max}); err != nil {
		return nil, "", err
	}
	var vs []pool.Volume
	for _, v := range f.volumes {
		vs = append(vs, v)
	}
	slices.SortFunc(vs, func(a, b pool.Volume) int { return cmp.Compare(a.ID, b.ID) })
	return vs, "next", nil
}

type resize struct {
	ID   string
	Size int64
}

func (f *fake) Resize(ctx context.Context, id string, size int64) (pool.Volume, error) {
	v := f.volumes[id]
	v.Size = size
	return v, f.did(ctx, resize{id, size})
}

type modified struct {
	ID     string
	Change pool.Change
}

func (f *fake) Modify(ctx context.Context, id string, c pool.Change) (pool.Volume, error) {
	if err := f.did(ctx, modified{id, c}); err != nil {
		return pool.Volume{}, err
	}
	v, ok := f.volumes[id]
	if !ok {
		return v, pool.ErrNotFound
	}
	v.Limits, v.OnFull = c.Apply(v.Limits, v.OnFull)
	return v, nil
}

// Follow is of control.Holder.
func (f *fake) Follow(ctx context.Context, id string) error { return f.did(ctx, "follow "+id) }

type attach struct {
	ID, Node string
	ReadOnly bool
}

func (f *fake) Attach(ctx context.Context, id, node string, readOnly bool) error {
	return f.did(ctx, attach{id, node, readOnly})
}

func (f *fake) Detach(ctx context.Context, id, node string) error {
	return f.did(ctx, attach{id, node, false})
}

type place struct{ ID, Path string }

func (f *fake) Stage(ctx context.Context, r node.StageRequest) error     { return f.did(ctx, r) }
func (f *fake) Unstage(ctx context.Context, id, p string) error          { return f.did(ctx, place{id, p}) }
func (f *fake) Publish(ctx context.Context, r node.PublishRequest) error { return f.did(ctx, r) }
func (f *fake) Unpublish(ctx context.Context, id, p string) error        { return f.did(ctx, place{id, p}) }

func (f *fake) Stats(ctx context.Context, id, p string) (node.Stats, error) {
	return f.stats, f.did(ctx, place{id, p})
}

func (f *fake) Expand(ctx context.Context, id, p string) (int64, error) {
	return f.size, f.did(ctx, place{id, p})
}

func (f *fake) Capacity(context.Context) (pool.Capacity, error) {
	return pool.Capacity{Total: 100 << 30, Available: 50 << 30, AvailableFixed: 20 << 30, Maximum: maxVolume}, f.err
}

// serve starts a server over f and returns a connection to it.
func serve(t *testing.T, f *fake, change ...func(*Config)) *grpc.ClientConn {
	t.Helper()
	return serveWithLog(klog.NewContext(t.Context(), ktesting.NewLogger(t, ktesting.NewConfig())), t, f, change...)
}

func serveWithLog(ctx context.Context, t *testing.T, f *fake, change ...func(*Config)) *grpc.ClientConn {
	t.Helper()
	c := Config{
		Version: "test",
		Controller: &Controller{Volumes: f, Attachments: f, Snapshots: f, Pools: []Pool{
			{Name: "default", Capacity: f.Capacity}, {Name: "fast", Capacity: f.Capacity}}},
		Node:   &NodeService{Mounts: f, Usage: f, ID: "node-1", Pools: []Pool{{Name: "default"}, {Name: "fast"}}},
		Health: Health{Pools: &f.health, Figures: f.health.figures, Here: &f.health, Nodes: &f.health},
	}
	for _, ch := range change {
		ch(&c)
	}
	s, err := New(ctx, c)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	endpoint := "unix://" + filepath.Join(t.TempDir(), "csi.sock")
	l, err := Listen(endpoint)
	if err != nil {
		t.Fatalf("Listen: %v", err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	conn, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatalf("NewClient: %v", err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if err := s.Stop(end); err != nil {
			t.Errorf("Stop: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return conn
}

func localPool(c *Config) {
	c.Controller.Pools[0].OnlyOn = c.Node.ID
	c.Node.Pools[0].OnlyOn = c.Node.ID
}

func wantCode(t *testing.T, err error, want codes.Code) {
	t.Helper()
	if got := status.Code(err); got != want {
		t.Fatalf("code %v, want %v (%v)", got, want, err)
	}
}
