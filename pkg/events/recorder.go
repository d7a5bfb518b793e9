package events

import (
	"container/list"
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Cluster is what this package needs of the API server; *kubeapi.Client is one.
type Cluster interface {
	Do(ctx context.Context, method, path string, in, out any) error
}

// Options of a [Recorder].
type Options struct {
	Cluster Cluster
	Driver  string // its name in Kubernetes
	// Node that this process serves; "": it is a controller only, and its Events
	// are the driver's.
	Node string
	// Instance is this process, in the Events.
	Instance string
	// Written, Failed and Dropped are told of each Event, once. Failed says why.
	Written, Dropped func()
	Failed           func(error)
}

const (
	queued      = 128 // Events that wait for the API server
	remembered  = 512 // kinds of Events that are known to repeat
	maxMessage  = 1000
	perMinute   = 20 // Events of all kinds, after a burst of
	burst       = 60
	repeatEvery = time.Minute // of one kind, after a burst of
	repeatBurst = 5
)

// Recorder writes Events to the API server, and waits for it alone.
type Recorder struct {
	o     Options
	queue chan Event
	all   *rate.Limiter
	mu    sync.Mutex // over known
	known map[subject]*list.Element
	order *list.List // of *history, the newest in front
}

// subject is what Events repeat about.
type subject struct {
	reason Reason
	volume string
}

// history is what has been written about a subject.
type history struct {
	subject
	limit   *rate.Limiter
	message string
	at      []written // where the last Event about it is
	count   int
}

// New makes a recorder that writes until ctx ends.
func New(ctx context.Context, o Options) *Recorder {
	r := &Recorder{
		o: o, queue: make(chan Event, queued), all: rate.NewLimiter(perMinute/60.0, burst),
		known: map[subject]*list.Element{}, order: list.New(),
	}
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case e := <-r.queue:
				r.write(ctx, e)
			}
		}
	}()
	return r
}

// Record has an Event written, some time. It never blocks (I-EVT-1). A nil
// Recorder drops all.
func (r *Recorder) Record(e Event) {
	if r == nil {
		return
	}
	if !r.allow(e) {
		r.o.Dropped()
		return
	}
	select {
	case r.queue <- e:
	default:
		r.o.Dropped()
	}
}

// allow bounds how often anything is told, and one thing in particular.
func (r *Recorder) allow(e Event) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.about(e).limit.Allow() && r.all.Allow()
}

// about is called under mu.
func (r *Recorder) about(e Event) *history {
	s := subject{e.Reason, e.Volume}
	if el := r.known[s]; el != nil {
		r.order.MoveToFront(el)
		return el.Value.(*history)
	}
	if len(r.known) >= remembered {
		oldest := r.order.Back()
		delete(r.known, r.order.Remove(oldest).(*history).subject)
	}
	h := &history{subject: s, limit: rate.NewLimiter(rate.Every(repeatEvery), repeatBurst)}
	r.known[s] = r.order.PushFront(h)
	return h
}

// write makes a new Event on each object that it is about, or raises the count
// of those that said the same.
func (r *Recorder) write(ctx context.Context, e Event) {
	e.Message = clip(e.Message)
	r.mu.Lock()
	h := r.about(e)
	r.mu.Unlock()
	// Only this goroutine uses the rest of h.
	var err error
	if h.message == e.Message && len(h.at) > 0 {
		h.count++
		if err = r.again(ctx, h); notFound(err) {
			h.at = nil // Kubernetes keeps Events for an hour
		}
	}
	if h.message != e.Message || len(h.at) == 0 {
		h.message, h.count = e.Message, 1
		h.at, err = r.create(ctx, e)
	}
	switch {
	case ctx.Err() != nil:
	case err != nil:
		r.o.Failed(err)
	default:
		r.o.Written()
	}
}

func clip(s string) string {
	if len(s) <= maxMessage {
		return s
	}
	return s[:maxMessage-3] + "..."
}

func notFound(err error) bool {
	s, ok := errors.AsType[interface {
		error
		HTTPStatus() int
	}](err)
	return ok && s.HTTPStatus() == http.StatusNotFound
}
