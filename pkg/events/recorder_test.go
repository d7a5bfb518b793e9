package events

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/kubeapi"
)

// server stands in for the API server: it keeps what it is sent and knows one
// attached volume. What a real one makes of it is seen in a real cluster.
type server struct {
	*httptest.Server
	mu       sync.Mutex
	objects  map[string]string         // what GET answers
	events   map[string]map[string]any // by path
	requests []string
	refuse   int // the code for every write; 0: take it
}

// attachment is what Kubernetes calls the attachment of volume "vol" to node "n1":
//
//	printf %s volcsi.vhdx.devn1 | sha256sum
const attachment = "csi-6a870d2f518cb3e71b82364e061c4e89830c24b4ae7c80f43225d73ac056b5c0"

func newServer(t *testing.T) (*server, *kubeapi.Client) {
	t.Helper()
	s := &server{events: map[string]map[string]any{}, objects: map[string]string{}}
	s.Server = httptest.NewTLSServer(s)
	t.Cleanup(s.Close)
	dir := t.TempDir()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "ca.crt"), ca, 0o600), os.WriteFile(filepath.Join(dir, "token"), []byte("let-me-in\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	c, err := kubeapi.New(s.URL, dir)
	if err != nil {
		t.Fatal(err)
	}
	return s, c
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, r.Method+" "+r.URL.Path)
	answer := func(code int, body string) {
		w.WriteHeader(code)
		_, _ = fmt.Fprint(w, body)
	}
	if r.Header.Get("Authorization") != "Bearer let-me-in" {
		answer(http.StatusUnauthorized, `{"message":"who are you"}`)
		return
	}
	body := map[string]any{}
	switch r.Method {
	case http.MethodGet:
		if o, ok := s.objects[r.URL.Path]; ok {
			answer(http.StatusOK, o)
			return
		}
		answer(http.StatusNotFound, `{"message":"not found"}`)
		return
	case http.MethodPost, http.MethodPatch:
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			answer(http.StatusBadRequest, "")
			return
		}
	}
	path := r.URL.Path
	if r.Method == http.MethodPost {
		path += "/" + body["metadata"].(map[string]any)["name"].(string)
	}
	switch {
	case s.refuse != 0:
		answer(s.refuse, `{"message":"no"}`)
	case r.Method == http.MethodPatch && s.events[path] == nil:
		answer(http.StatusNotFound, `{"message":"not found"}`)
	default:
		if s.events[path] == nil {
			s.events[path] = map[string]any{}
		}
		for k, v := range body {
			s.events[path][k] = v
		}
		answer(http.StatusOK, "{}")
	}
}

// told lists the Events there are: object, reason, count.
func (s *server) told() map[string]float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	got := map[string]float64{}
	for path, e := range s.events {
		o := e["involvedObject"].(map[string]any)
		got[fmt.Sprintf("%s: %s %s (%v) %s %s", strings.Split(path, "/")[4], o["kind"], o["name"], o["uid"], e["type"], e["reason"])] += e["count"].(float64)
	}
	return got
}

type outcomes struct{ written, failed, dropped atomic.Int64 }

func (n *outcomes) options(o Options) Options {
	o.Written, o.Dropped = func() { n.written.Add(1) }, func() { n.dropped.Add(1) }
	o.Failed = func(error) { n.failed.Add(1) }
	return o
}

func (n *outcomes) await(t *testing.T, written, failed int64) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); n.written.Load() != written || n.failed.Load() != failed; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("written %d, failed %d; want %d, %d", n.written.Load(), n.failed.Load(), written, failed)
		}
	}
}

// An Event of a volume is on the node, the volume and its claim; the same again
// raises its count, something else makes a new one, and one that is gone is made anew.
func TestRecorder(t *testing.T) {
	s, c := newServer(t)
	var n outcomes
	r := New(t.Context(), n.options(Options{Cluster: c, Driver: "csi.vhdx.dev", Node: "n1", Instance: "pod-1"}))
	s.objects["/apis/storage.k8s.io/v1/volumeattachments/"+attachment] = `{"spec":{"source":{"persistentVolumeName":"pvc-7"}}}`
	s.objects["/api/v1/persistentvolumes/pvc-7"] = `{"metadata":{"uid":"u7"},"spec":{"claimRef":{"kind":"PersistentVolumeClaim","namespace":"shop","name":"data","uid":"u8"}}}`
	e := Event{Reason: VolumeWaiting, Warning: true, Volume: "vol", Message: "it waits"}
	r.Record(e)
	n.await(t, 1, 0)
	want := map[string]float64{
		"default: Node n1 (n1) Warning VolumeWaiting":                 1,
		"default: PersistentVolume pvc-7 (u7) Warning VolumeWaiting":  1,
		"shop: PersistentVolumeClaim data (u8) Warning VolumeWaiting": 1,
	}
	if d := cmp.Diff(want, s.told()); d != "" {
		t.Fatalf("(-want +got)\n%s\n%v", d, s.requests)
	}
	r.Record(e)
	n.await(t, 2, 0)
	for k := range want {
		want[k] = 2
	}
	if d := cmp.Diff(want, s.told()); d != "" {
		t.Fatalf("again (-want +got)\n%s", d)
	}
	s.mu.Lock()
	if len(s.events) != 3 {
		t.Errorf("%d Events for one thing told twice", len(s.events))
	}
	clear(s.events)
	s.mu.Unlock()
	r.Record(e)
	n.await(t, 3, 0)
	if got := s.told()["default: Node n1 (n1) Warning VolumeWaiting"]; got != 1 {
		t.Errorf("made anew: %v", s.told())
	}
	r.Record(Event{Reason: KeeperBack, Message: "all is well"})
	r.Record(Event{Reason: VolumeDead, Warning: true, Volume: "unknown", Message: "gone"})
	n.await(t, 5, 0)
	got := s.told()
	if got["default: Node n1 (n1) Normal KeeperBack"] != 1 || got["default: Node n1 (n1) Warning VolumeDeviceLost"] != 1 {
		t.Errorf("%v", got)
	}
}

// A controller's Events are the driver's.
func TestRecorderOfController(t *testing.T) {
	s, c := newServer(t)
	s.objects["/apis/storage.k8s.io/v1/csidrivers/csi.vhdx.dev"] = `{"metadata":{"uid":"u1"}}`
	var n outcomes
	r := New(t.Context(), n.options(Options{Cluster: c, Driver: "csi.vhdx.dev"}))
	r.Record(Event{Reason: PoolFull, Warning: true, Message: "full"})
	n.await(t, 1, 0)
	if d := cmp.Diff(map[string]float64{"default: CSIDriver csi.vhdx.dev (u1) Warning PoolFull": 1}, s.told()); d != "" {
		t.Fatal(d)
	}
}

// I-EVT-1, I-EVT-2: with an API server that does not answer nobody waits, memory
// is bounded, and what is not written is counted.
func TestRecorderWithoutServer(t *testing.T) {
	stuck := make(chan struct{})
	var n outcomes
	r := New(t.Context(), n.options(Options{Cluster: never(stuck), Driver: "d", Node: "n1"}))
	const many = 10000
	for i := range many {
		r.Record(Event{Reason: VolumeWaiting, Volume: fmt.Sprint(i), Message: "x"})
	}
	if got := n.dropped.Load(); got < many-burst-1 || got > many {
		t.Errorf("%d of %d dropped", got, many)
	}
	if len(r.known) > remembered || r.order.Len() != len(r.known) || len(r.queue) > queued {
		t.Errorf("%d subjects, %d queued", len(r.known), len(r.queue))
	}
	close(stuck)
	var none *Recorder
	none.Record(Event{})
}

type never chan struct{}

func (n never) Do(ctx context.Context, _, _ string, _, _ any) error {
	select {
	case <-n:
	case <-ctx.Done():
	}
	return errors.New("made by the test")
}

// One thing that flaps is told a few times and leaves room for others.
func TestRecorderOfSomethingThatFlaps(t *testing.T) {
	s, c := newServer(t)
	var n outcomes
	r := New(t.Context(), n.options(Options{Cluster: c, Driver: "d", Node: "n1"}))
	for i := range 100 {
		r.Record(Event{Reason: VolumeWaiting, Volume: "vol", Message: fmt.Sprint("for reason ", i)})
	}
	r.Record(Event{Reason: VolumeWaiting, Volume: "other", Message: "x"})
	n.await(t, repeatBurst+1, 0)
	if got := n.dropped.Load(); got != 100-repeatBurst {
		t.Errorf("%d dropped", got)
	}
	if len(s.told()) == 0 {
		t.Error("nothing told")
	}
}

// What is refused is counted, and its message bounded.
func TestRecorderThatIsRefused(t *testing.T) {
	s, c := newServer(t)
	s.refuse = http.StatusForbidden
	var n outcomes
	var why atomic.Value
	o := n.options(Options{Cluster: c, Driver: "d", Node: "n1"})
	o.Failed = func(err error) { why.Store(err); n.failed.Add(1) }
	r := New(t.Context(), o)
	r.Record(Event{Reason: KeeperGone, Message: strings.Repeat("x", 10000)})
	n.await(t, 0, 1)
	if e, ok := errors.AsType[*kubeapi.StatusError](why.Load().(error)); !ok || e.Code != http.StatusForbidden || e.Message != "no" {
		t.Errorf("%v", why.Load())
	}
	s.mu.Lock()
	s.refuse = 0
	s.mu.Unlock()
	r.Record(Event{Reason: KeeperGone, Message: strings.Repeat("x", 10000)})
	n.await(t, 1, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.events {
		if m := e["message"].(string); len(m) != maxMessage {
			t.Errorf("a message of %d bytes", len(m))
		}
	}
}
