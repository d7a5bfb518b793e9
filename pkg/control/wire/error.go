package wire

import (
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control"
)

// Error is an answer of a node. Its code was chosen there, by the same table
// that the reader of this has.
type Error struct {
	Node string
	Code codes.Code
	Text string

	is error // the sentinel of package control that it was, nil for another
}

func (e *Error) Error() string { return fmt.Sprintf("node %s: %s", e.Node, e.Text) }

// Is reports a match with [control.ErrNotHeld] or [control.ErrFrozenNoMore].
func (e *Error) Is(target error) bool { return e.is != nil && e.is == target }

// translate tells what a node has answered from no answer at all (I-CTL-3).
func translate(node, where string, err error, trailer metadata.MD) error {
	if err == nil {
		return nil
	}
	st := status.Convert(err)
	text := shorten(st.Message())
	if kind := trailer.Get(answered); len(kind) == 1 {
		e := &Error{Node: node, Code: st.Code(), Text: text}
		switch kind[0] {
		case answerClosed:
			e.is = control.ErrNotHeld
		case answerThawed:
			e.is = control.ErrFrozenNoMore
		}
		return e
	}
	switch st.Code() {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Unauthenticated, codes.PermissionDenied, codes.Unknown, codes.ResourceExhausted:
		return unreachable(node, where, text)
	case codes.Unimplemented:
		text += "; the node's plugin is of another version than the controller's: update them both"
	}
	return &Error{Node: node, Code: st.Code(), Text: text}
}

func unreachable(node, where, text string) error {
	return fmt.Errorf("node %s: %w at %s: %s; see whether its plugin runs and whether a network policy is in between", node, control.ErrUnreachable, where, text)
}

// shorten bounds a text for people.
func shorten(s string) string {
	return strings.ToValidUTF8(s[:min(len(s), maxText)], "")
}
