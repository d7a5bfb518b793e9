package wire

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control"
)

// service ends in the version that changes when old and new cannot understand
// each other.
const service = "csi.vhdx.dev.control.v1.Node"

// Bounds of what a message may say.
const (
	maxID      = 256
	maxLimit   = time.Hour
	maxEntries = 64
	maxReason  = 64
	maxText    = 2048
)

// request is a message that asks about a volume.
type request interface {
	message
	volume() string
}

// about begins every request.
type about struct {
	header
	Volume string `json:"volume"`
}

func (a *about) volume() string { return a.Volume }

func (a *about) fault() string { return faultOfID("volume", a.Volume) }

func faultOfID(what, id string) string {
	if id == "" || len(id) > maxID {
		return fmt.Sprintf("%s of %d bytes, 1 to %d are possible", what, len(id), maxID)
	}
	return ""
}

type freezeRequest struct {
	about
	Token string        `json:"token"`
	Limit time.Duration `json:"limitNanos"`
}

func (m *freezeRequest) fault() string {
	if m.Limit <= 0 || m.Limit > maxLimit {
		return fmt.Sprintf("a freeze of %v, at most %v is possible", m.Limit, maxLimit)
	}
	return firstOf(m.about.fault(), faultOfID("token", m.Token))
}

type freezeReply struct {
	header
	Consistency string `json:"consistency"`
}

func (m *freezeReply) fault() string { return faultOfConsistency(m.Consistency) }

type cutRequest struct {
	about
	Snapshot string        `json:"snapshot"`
	Freeze   bool          `json:"freeze,omitempty"`
	Limit    time.Duration `json:"limitNanos,omitempty"`
	Token    string        `json:"token,omitempty"`
}

func (m *cutRequest) fault() string {
	switch {
	case m.Limit < 0 || m.Limit > maxLimit || m.Freeze && m.Limit == 0:
		return fmt.Sprintf("a freeze of %v, at most %v is possible", m.Limit, maxLimit)
	case m.Freeze && m.Token != "":
		return "a freeze around it and within one"
	case len(m.Token) > maxID:
		return faultOfID("token", m.Token)
	}
	return firstOf(m.about.fault(), faultOfID("snapshot", m.Snapshot))
}

type cutReply struct {
	header
	Pause       time.Duration `json:"pauseNanos"`
	Frozen      time.Duration `json:"frozenNanos"`
	Consistency string        `json:"consistency"`
}

func (m *cutReply) fault() string {
	if m.Pause < 0 || m.Frozen < 0 {
		return "it took less than no time"
	}
	return faultOfConsistency(m.Consistency)
}

type thawRequest struct {
	about
	Token string `json:"token"`
}

func (m *thawRequest) fault() string {
	return firstOf(m.about.fault(), faultOfID("token", m.Token))
}

type followRequest struct{ about }

type reportRequest struct{ about }

type reportReply struct {
	header
	Entries []entry `json:"entries,omitempty"`
}

type entry struct {
	Status  control.Status `json:"status"`
	Reason  string         `json:"reason"`
	Message string         `json:"message,omitempty"`
}

func (m *reportReply) fault() string {
	if len(m.Entries) > maxEntries {
		return fmt.Sprintf("%d entries, at most %d are possible", len(m.Entries), maxEntries)
	}
	for _, e := range m.Entries {
		switch e.Status {
		case control.StatusDegraded, control.StatusInaccessible, control.StatusDataLoss:
		default:
			return fmt.Sprintf("status %.32q", e.Status)
		}
		if e.Reason == "" || len(e.Reason) > maxReason || len(e.Message) > maxText {
			return fmt.Sprintf("a reason of %d bytes with a text of %d", len(e.Reason), len(e.Message))
		}
	}
	return ""
}

// done is the answer that says nothing else.
type done struct{ header }

func (*done) fault() string { return "" }

func faultOfConsistency(c string) string {
	if c != control.ConsistencyFilesystem && c != control.ConsistencyCrash {
		return fmt.Sprintf("consistency %.32q", c)
	}
	return ""
}

func firstOf(faults ...string) string {
	for _, f := range faults {
		if f != "" {
			return f
		}
	}
	return ""
}

// description is the service: the five calls of [control.Holder].
var description = grpc.ServiceDesc{
	ServiceName: service,
	HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{
		method("Freeze", func(ctx context.Context, h control.Holder, q *freezeRequest) (message, error) {
			c, err := h.Freeze(ctx, q.Volume, q.Token, q.Limit)
			return &freezeReply{Consistency: c}, err
		}),
		method("Cut", func(ctx context.Context, h control.Holder, q *cutRequest) (message, error) {
			r, err := h.Cut(ctx, q.Volume, q.Snapshot, control.CutOptions{Freeze: q.Freeze, Limit: q.Limit, Token: q.Token})
			return &cutReply{Pause: r.Pause, Frozen: r.Frozen, Consistency: r.Consistency}, err
		}),
		method("Thaw", func(ctx context.Context, h control.Holder, q *thawRequest) (message, error) {
			return &done{}, h.Thaw(ctx, q.Volume, q.Token)
		}),
		method("Follow", func(ctx context.Context, h control.Holder, q *followRequest) (message, error) {
			return &done{}, h.Follow(ctx, q.Volume)
		}),
		method("Report", func(ctx context.Context, h control.Holder, q *reportRequest) (message, error) {
			r, err := h.Report(ctx, q.Volume)
			return replyOf(r), err
		}),
	},
}

// replyOf shortens a report to what an answer can hold.
func replyOf(r control.Report) *reportReply {
	m := &reportReply{}
	for _, e := range r.Entries[:min(len(r.Entries), maxEntries)] {
		e.Message = shorten(e.Message)
		m.Entries = append(m.Entries, entry(e))
	}
	return m
}
