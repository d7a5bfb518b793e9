package pool

import "fmt"

// Trouble is what is wrong with a pool as a whole.
type Trouble string

// The troubles. docs/reference/health.md says what to do about each.
const (
	NoTrouble   Trouble = ""
	TroubleAway Trouble = "PoolUnreachable"
	TroubleNear Trouble = "PoolNearFull"
	TroubleFull Trouble = "PoolFull"
)

// Troubles are all of them.
var Troubles = []Trouble{TroubleAway, TroubleNear, TroubleFull}

// The marks: how much of what may be used is free. What may be used is the
// filesystem without the reserve.
const (
	nearFull = 0.10
	full     = 0.02
)

// Left is the part of what may be used that is free, at most 1; not above 0 when
// there is no more than the reserve.
func (f Figures) Left() float64 {
	return float64(f.Free-f.Reserve) / float64(max(f.Total-f.Reserve, 1))
}

// Trouble is what the newest figures show, and why.
func (f Figures) Trouble() (Trouble, error) {
	switch left := f.Left(); {
	case f.Err != nil:
		return TroubleAway, f.Err
	case f.At.IsZero():
		return NoTrouble, nil // nothing is known
	case left < full:
		return TroubleFull, f.space("full", "writes to its volumes wait or fail")
	case left < nearFull:
		return TroubleNear, f.space("nearly full", "delete snapshots and volumes that nobody needs")
	}
	return NoTrouble, nil
}

func (f Figures) space(how, now string) error {
	return fmt.Errorf("pool %s is %s: %d of %d MiB are free, %d MiB of them reserved; make room on the share or grow it; %s",
		f.Pool, how, f.Free>>20, f.Total>>20, f.Reserve>>20, now)
}
