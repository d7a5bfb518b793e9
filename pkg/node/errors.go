package node

import "errors"

// The errors a caller can act on. Errors of the pool, the image and the block
// backend pass through wrapped, so that pool.ErrNotFound stays what it is.
var (
	// ErrInvalid: an argument that can never work.
	ErrInvalid = errors.New("invalid argument")
	// ErrNotFound: this node has no such volume, or the volume has no such path.
	ErrNotFound = errors.New("not found on this node")
	// ErrPending: another call for this volume is under way. Not final.
	ErrPending = errors.New("an operation on this volume is in progress")
	// ErrIncompatible: the volume is staged, or the path published, with other
	// arguments.
	ErrIncompatible = errors.New("already there with other arguments")
	// ErrNotStaged: the volume must be staged at that path first.
	ErrNotStaged = errors.New("volume is not staged")
	// ErrNotAttached: the controller has not given the volume to this node.
	ErrNotAttached = errors.New("volume is not attached to this node")
	// ErrNoFilesystem: the volume holds data and no usable filesystem of the
	// wanted type. It is never formatted.
	ErrNoFilesystem = errors.New("no usable filesystem")
	// ErrFormat: mkfs refused, for its options or the size. Nothing was lost:
	// the volume was blank.
	ErrFormat = errors.New("filesystem could not be made")
	// ErrBusy: something still uses the volume: a mount, an open file. Never
	// unmounted by force.
	ErrBusy = errors.New("volume is in use on this node")
	// ErrForeignMount: something that is not this volume is mounted there.
	ErrForeignMount = errors.New("another filesystem is mounted there")
	// ErrReadOnlyRemount: the staged filesystem met an error and is read-only
	// or shut down. It has to be unstaged and staged again.
	ErrReadOnlyRemount = errors.New("filesystem has become read-only")
	// ErrSingleWriter: the volume may have one target only, and has it.
	ErrSingleWriter = errors.New("volume is published to another target")
	// ErrPaused: writes of the volume wait for space on its share. It can be
	// neither synced nor taken down before there is some. Not final.
	ErrPaused = errors.New("volume is paused: the share is full")
	// ErrCannotPause: the volume shall pause when the share is full, and that is
	// not possible there.
	ErrCannotPause = errors.New("writes cannot wait for space")
	// ErrUnserved: the volume's device waits for its server since the death of
	// an earlier process. No request has failed; it is tried again. Not final.
	ErrUnserved = errors.New("device waits for its server")
	// ErrNoKeeper: the keeper does not answer or does not take what it is given.
	// Without it the death of this process would cost the device. Not final.
	ErrNoKeeper = errors.New("no keeper for the device")
	// ErrQuarantined: serving the volume has killed the plugin again and again.
	ErrQuarantined = errors.New("volume is in quarantine: it has killed its server three times; the plugin's log says how; SIGHUP to the plugin tries again")
	// ErrDeviceDead: the volume's device has stopped serving.
	ErrDeviceDead = errors.New("device has failed")
	// ErrOfflineOnly: image and device have grown; the filesystem cannot while
	// it is mounted, and will when the volume is staged the next time.
	ErrOfflineOnly = errors.New("filesystem grows at the next stage only")
	// ErrStuck: a helper process did not come back in time and was abandoned.
	// Not final: the state of the volume is not known.
	ErrStuck = errors.New("helper process is stuck")
	// ErrUnfinished: a call failed and its effects could not be undone. Not
	// final: the journal keeps the volume, and the next call tries again.
	ErrUnfinished = errors.New("failed and not yet cleaned up")
	// ErrStateInUse: another process uses the state directory.
	ErrStateInUse = errors.New("state directory is in use by another process")
)
