package control

import (
	"context"
	"errors"
	"testing"
	"time"
)

// named is a Holder that counts what it is asked.
type named struct{ calls int }

func (n *named) Freeze(context.Context, string, string, time.Duration) (string, error) {
	n.calls++
	return ConsistencyFilesystem, nil
}

func (n *named) Cut(context.Context, string, string, CutOptions) (CutResult, error) {
	n.calls++
	return CutResult{}, nil
}
func (n *named) Thaw(context.Context, string, string) error     { n.calls++; return nil }
func (n *named) Follow(context.Context, string) error           { n.calls++; return nil }
func (n *named) Report(context.Context, string) (Report, error) { n.calls++; return Report{}, nil }
func (n *named) On(string) Holder                               { return n }
func all(ctx context.Context, h Holder) (errs []error) {
	_, err := h.Freeze(ctx, "v", "t", time.Second)
	errs = append(errs, err)
	_, err = h.Cut(ctx, "v", "s", CutOptions{})
	errs = append(errs, err, h.Thaw(ctx, "v", "t"), h.Follow(ctx, "v"))
	_, err = h.Report(ctx, "v")
	return append(errs, err)
}

type locator struct {
	node string
	held bool
	err  error
}

func (l locator) Holder(context.Context, string) (string, bool, error) { return l.node, l.held, l.err }

func TestRouter(t *testing.T) {
	lost := errors.New("lost")
	for name, tt := range map[string]struct {
		find       locator
		remote     bool
		local, far int
		want       error
	}{
		"here":                  {find: locator{"n1", true, nil}, remote: true, local: 5},
		"here, alone":           {find: locator{"n1", true, nil}, local: 5},
		"there":                 {find: locator{"n2", true, nil}, remote: true, far: 5},
		"there, but no network": {find: locator{"n2", true, nil}, want: ErrUnreachable},
		"nowhere":               {find: locator{}, remote: true, want: ErrNotHeld},
		"not known":             {find: locator{err: lost}, remote: true, want: lost},
	} {
		t.Run(name, func(t *testing.T) {
			local, far := &named{}, &named{}
			r := &Router{Find: tt.find, Node: "n1", Local: local}
			if tt.remote {
				r.Remote = far
			}
			for i, err := range all(t.Context(), r) {
				if !errors.Is(err, tt.want) {
					t.Errorf("call %d: %v, want %v", i, err, tt.want)
				}
			}
			if local.calls != tt.local || far.calls != tt.far {
				t.Errorf("%d calls here, %d there", local.calls, far.calls)
			}
		})
	}
}

// TestRouterOfAController: a process without a node of its own asks the network
// for a node whose name is empty in no record.
func TestRouterOfAController(t *testing.T) {
	far := &named{}
	r := &Router{Find: locator{"", true, nil}, Remote: far}
	if err := errors.Join(all(t.Context(), r)...); err != nil || far.calls != 5 {
		t.Fatalf("%v, %d calls", err, far.calls)
	}
}
