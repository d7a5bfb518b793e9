package node

import (
	"errors"
	"io"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// diagnosis says what an error shows of a volume.
type diagnosis struct {
	err error
	is  control.Condition
}

// diagnoses is searched from the top: what wraps another error comes first.
var diagnoses = []diagnosis{
	{ErrQuarantined, control.Quarantined},
	{vhdx.ErrTakenOver, control.LeaseLost},
	{vhdx.ErrPoisoned, control.ImagePoisoned},
	{vhdx.ErrParentMissing, control.ParentMissing},
	{vhdx.ErrParentMismatch, control.ParentMismatch},
	{vhdx.ErrParentRefused, control.ParentRefused},
	{vhdx.ErrNotVHDX, control.HeaderCorrupt},
	{vhdx.ErrUnsupported, control.ImageUnsupported},
	{ErrNoFilesystem, control.FilesystemUnusable},
	{ErrReadOnlyRemount, control.FilesystemReadOnly},
	{pool.ErrAttachedElsewhere, control.LeaseLost},
	{pool.ErrInUse, control.LeaseLost},
	{vhdx.ErrInUse, control.LeaseLost},
	{ErrPaused, control.PoolFull},
	{pool.ErrNoSpace, control.PoolFull},
	{unix.ENOSPC, control.PoolFull},
	{unix.EDQUOT, control.PoolFull},
}

// Diagnose says what an error shows of a volume; ok is false where it shows
// nothing in particular.
func Diagnose(err error) (c control.Condition, ok bool) {
	if err == nil {
		return c, false
	}
	if broken, ok := errors.AsType[*vhdx.CorruptError](err); ok {
		return corrupt(broken.Structure), true
	}
	if errors.Is(err, pool.ErrDamaged) || errors.Is(err, pool.ErrFormat) {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return control.ImageMissing, true
		case errors.Is(err, io.ErrUnexpectedEOF):
			return control.ImageTruncated, true
		}
		return control.RecordDamaged, true
	}
	for _, d := range diagnoses {
		if errors.Is(err, d.err) {
			return d.is, true
		}
	}
	if pool.Unreachable(err) {
		return control.PoolUnreachable, true
	}
	return c, false
}

// corrupt tells what is broken from how it is called: see [vhdx.CorruptError].
func corrupt(structure string) control.Condition {
	switch {
	case structure == "log" || strings.HasPrefix(structure, "log "):
		return control.LogReplayFailed
	case structure == "header":
		return control.HeaderCorrupt
	}
	return control.MetadataCorrupt
}

// orElse is what a state shows where its error shows nothing in particular.
var orElse = map[State]control.Condition{
	StateWaiting:     control.WaitingForServer,
	StateQuarantined: control.Quarantined,
	StatePoisoned:    control.ImagePoisoned,
	StatePaused:      control.PoolFull,
	StateReadOnly:    control.FilesystemReadOnly,
	StateDead:        control.DeviceLost,
	StateLeft:        control.LeftBehind,
	StateFailed:      control.StageFailed,
}

// wrong is what is wrong with a volume in a state.
func wrong(s State, err error) []control.Entry {
	if s == StateServing || s == StateChanging {
		return nil
	}
	c, known := Diagnose(err)
	fixed := orElse[s]
	switch {
	case s == StateDead && c != control.LeaseLost:
		c = control.DeviceLost // why it failed is in the message
	case !known, s == StatePoisoned, s == StatePaused, s == StateReadOnly, s == StateQuarantined:
		c = fixed
	}
	return []control.Entry{c.Because(err)}
}
