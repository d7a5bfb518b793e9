package blockdev

import "time"

// Pause says that writes of a device wait for space. The zero value: none does.
type Pause struct {
	Since   time.Time // when the first of them had to wait
	Reason  error     // ENOSPC or EDQUOT
	Waiting int       // requests that wait now
}

// On reports whether any write waits.
func (p Pause) On() bool { return !p.Since.IsZero() }

// Pauser is a Device that can hold writes for which there is no space; see
// Config.Pause.
type Pauser interface {
	// Paused waits for nobody.
	Paused() Pause
	// SetPause changes what Config.Pause and PauseLimit have said. What waits
	// and may no longer do so fails.
	SetPause(on bool, limit time.Duration)
}

// Prober is an Image that can say more cheaply than by a write that fails
// whether its storage is still full.
type Prober interface {
	// Full may wait for the storage. False is no promise.
	Full() bool
}

// Poisoner is an Image that may have stopped to take writes for good. Its
// errors are final then, whatever they wrap.
type Poisoner interface{ Poisoned() error }

// Limits bound what a device does in a second. Zero: no limit. Flushes are
// neither counted nor held.
type Limits struct {
	IOPS      int64 // requests
	Bandwidth int64 // bytes of reads and writes together
	// Burst is for how many seconds an allowance that was not used is kept, and
	// may then be used at once.
	Burst int64
}

// Limiter is a Device whose limits can be changed under I/O.
type Limiter interface {
	SetLimits(l Limits)
}
