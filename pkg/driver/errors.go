package driver

import (
	"context"
	"errors"
	"regexp"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control/wire"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/node"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// What the handlers themselves have to say.
var (
	errInvalid     = errors.New("invalid request")
	errRange       = errors.New("capacity range cannot be met")
	errNoRoomHere  = errors.New("no room in the topology asked for")
	errStagingPath = errors.New("staging_target_path is missing: the volume must be staged first")
	errPending     = errors.New("an operation on this volume is still running")
	errStopping    = errors.New("the plugin is stopping")
	errShareHangs  = errors.New("the share does not answer")
	errPanic       = errors.New("internal error, see the plugin's log")
)

// rule maps an error to a code. in restricts it to one method.
//
// Kubernetes takes Canceled, DeadlineExceeded, Unavailable, ResourceExhausted
// and Aborted for "may still be going on" and keeps what it has; everything
// else is final, and it cleans up. So a rule may name a final code only for an
// error after which nothing is left running or half done (I-DRV-3).
type rule struct {
	err  error
	code codes.Code
	in   string
}

// rules is searched from the top. The order matters where an error wraps two.
var rules = []rule{
	{err: errPanic, code: codes.Internal},
	{err: errInvalid, code: codes.InvalidArgument},
	{err: errRange, code: codes.OutOfRange},
	{err: errNoRoomHere, code: codes.ResourceExhausted},
	{err: errStagingPath, code: codes.FailedPrecondition},
	{err: errPending, code: codes.Aborted},
	{err: errStopping, code: codes.Unavailable},
	{err: errShareHangs, code: codes.Unavailable},

	// These say that something is left running or half done, whatever else
	// they wrap.
	{err: node.ErrPending, code: codes.Aborted},
	{err: node.ErrPaused, code: codes.Aborted},
	{err: blockdev.ErrPaused, code: codes.Aborted},
	{err: node.ErrUnserved, code: codes.Unavailable},
	{err: node.ErrNoKeeper, code: codes.Unavailable},
	{err: node.ErrStuck, code: codes.Aborted},
	{err: node.ErrUnfinished, code: codes.Aborted},
	{err: pool.ErrBusy, code: codes.Aborted},
	{err: control.ErrUnreachable, code: codes.Unavailable},
	// The volume moves, or a freeze did not last: the caller begins anew.
	{err: control.ErrNotHeld, code: codes.Aborted},
	{err: control.ErrFrozenNoMore, code: codes.Aborted},

	{err: pool.ErrAway, code: codes.Unavailable},
	{err: pool.ErrNotFound, code: codes.NotFound},
	{err: pool.ErrNoSnapshot, code: codes.NotFound},
	{err: pool.ErrChainFull, code: codes.ResourceExhausted},
	{err: pool.ErrNotTogether, code: codes.FailedPrecondition},
	{err: pool.ErrConflict, code: codes.AlreadyExists},
	{err: pool.ErrNodeFull, code: codes.ResourceExhausted},
	{err: pool.ErrNoSpace, code: codes.ResourceExhausted},
	{err: pool.ErrInvalid, code: codes.InvalidArgument},
	{err: pool.ErrOutOfRange, code: codes.OutOfRange},
	// The attacher lets go of a volume only on success, and the node may still
	// be writing: say that it has to come again.
	{err: pool.ErrInUse, code: codes.Aborted, in: "ControllerUnpublishVolume"},
	{err: pool.ErrInUse, code: codes.FailedPrecondition},
	{err: pool.ErrAttachedElsewhere, code: codes.FailedPrecondition},
	{err: pool.ErrIncompatible, code: codes.AlreadyExists},
	{err: pool.ErrNoNode, code: codes.NotFound},
	// Names in requests are checked before: this is an id of another
	// plugin's pool, or one that this process was not given.
	{err: pool.ErrNoPool, code: codes.FailedPrecondition},
	{err: pool.ErrBadToken, code: codes.Aborted},
	{err: pool.ErrUnsafeShare, code: codes.FailedPrecondition},
	{err: pool.ErrDamaged, code: codes.FailedPrecondition},
	{err: pool.ErrFormat, code: codes.FailedPrecondition},
	{err: pool.ErrNotAPool, code: codes.FailedPrecondition},
	{err: pool.ErrNotWritable, code: codes.FailedPrecondition},

	{err: node.ErrInvalid, code: codes.InvalidArgument},
	{err: node.ErrNotFound, code: codes.NotFound},
	{err: node.ErrIncompatible, code: codes.AlreadyExists},
	{err: node.ErrNotStaged, code: codes.FailedPrecondition},
	{err: node.ErrNotAttached, code: codes.FailedPrecondition},
	{err: node.ErrCannotPause, code: codes.FailedPrecondition},
	{err: node.ErrNoFilesystem, code: codes.FailedPrecondition},
	{err: node.ErrFormat, code: codes.FailedPrecondition},
	{err: node.ErrBusy, code: codes.FailedPrecondition},
	{err: node.ErrForeignMount, code: codes.FailedPrecondition},
	{err: node.ErrReadOnlyRemount, code: codes.FailedPrecondition},
	{err: node.ErrSingleWriter, code: codes.FailedPrecondition},
	{err: node.ErrQuarantined, code: codes.FailedPrecondition},
	{err: node.ErrOfflineOnly, code: codes.FailedPrecondition},
	{err: node.ErrDeviceDead, code: codes.Internal},

	{err: vhdx.ErrPoisoned, code: codes.Internal},
	{err: vhdx.ErrUndecided, code: codes.Internal},
	{err: vhdx.ErrTakenOver, code: codes.FailedPrecondition},
	{err: vhdx.ErrUnrelated, code: codes.FailedPrecondition},
	{err: vhdx.ErrParentMissing, code: codes.FailedPrecondition},
	{err: vhdx.ErrParentMismatch, code: codes.FailedPrecondition},
	{err: vhdx.ErrParentRefused, code: codes.FailedPrecondition},
	{err: vhdx.ErrCorrupt, code: codes.FailedPrecondition},
	{err: vhdx.ErrNotVHDX, code: codes.FailedPrecondition},
	{err: vhdx.ErrUnsupported, code: codes.FailedPrecondition},
	{err: vhdx.ErrLogReplayRequired, code: codes.FailedPrecondition},
	{err: vhdx.ErrReadOnly, code: codes.FailedPrecondition},
	{err: vhdx.ErrInUse, code: codes.FailedPrecondition},
	{err: vhdx.ErrDataBeyondEnd, code: codes.FailedPrecondition},
	{err: vhdx.ErrOutOfRange, code: codes.OutOfRange},
	{err: vhdx.ErrInvalid, code: codes.InvalidArgument},

	{err: blockdev.ErrBusy, code: codes.FailedPrecondition},
	{err: blockdev.ErrUnavailable, code: codes.FailedPrecondition},
	{err: blockdev.ErrGone, code: codes.Internal},
	{err: blockdev.ErrUnresumable, code: codes.Internal},

	// Work that gave up at its own deadline may have left a child behind.
	{err: context.DeadlineExceeded, code: codes.DeadlineExceeded},
	{err: context.Canceled, code: codes.Canceled},

	// The share does not answer, or not now: what was asked for may have
	// happened all the same.
	{err: syscall.ENOSPC, code: codes.ResourceExhausted},
	{err: syscall.EDQUOT, code: codes.ResourceExhausted},
	{err: syscall.EIO, code: codes.Unavailable},
	{err: syscall.ESTALE, code: codes.Unavailable},
	{err: syscall.ETIMEDOUT, code: codes.Unavailable},
	{err: syscall.ENOTCONN, code: codes.Unavailable},
	{err: syscall.EHOSTDOWN, code: codes.Unavailable},
	{err: syscall.EHOSTUNREACH, code: codes.Unavailable},
	{err: syscall.ENETUNREACH, code: codes.Unavailable},
	{err: syscall.ECONNREFUSED, code: codes.Unavailable},
	{err: syscall.ECONNRESET, code: codes.Unavailable},
}

// codeOf looks an error up. It is the only place that chooses a code (I-DRV-4).
func codeOf(method string, err error) codes.Code {
	if err == nil {
		return codes.OK
	}
	for _, r := range rules {
		if (r.in == "" || r.in == method) && errors.Is(err, r.err) {
			return r.code
		}
	}
	// A node that was asked has found its error in this table.
	if far, ok := errors.AsType[*wire.Error](err); ok {
		return far.Code
	}
	return codes.Internal
}

// Status is what a process that asks this one is sent of an error.
func Status(err error) error { return toStatus("", err) }

// toStatus turns the error of a call into what is sent.
func toStatus(method string, err error) error {
	if _, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
		return err // the methods that are not implemented
	}
	return status.Error(codeOf(method, err), scrub(err.Error()))
}

// reason is the text of an error as it may be logged.
func reason(err error) string {
	if err == nil {
		return ""
	}
	return scrub(err.Error())
}

// credential finds values that a mount option or a command line may carry.
var credential = regexp.MustCompile(`(?i)\b([\w.-]*(?:pass|passwd|password|passphrase|secret|token|credentials?|cred|key))(["']?\s*[=:]\s*["']?)[^\s,;"']+`)

// scrub takes credentials out of a text (I-DRV-7).
func scrub(s string) string { return credential.ReplaceAllString(s, "${1}${2}"+stripped) }

const stripped = "***stripped***"
