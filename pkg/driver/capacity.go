package driver

import (
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

// sizeRange is a capacity range in whole sectors. need 0: any; limit 0: none.
type sizeRange struct {
	need, limit int64
}

// parseRange checks a capacity range and rounds what is needed up to whole
// sectors. A size that is whole sectors stays exactly what it is: whoever asks
// compares. least is the smallest volume that can serve its purpose.
func parseRange(r *csi.CapacityRange, sector, least int64) (sizeRange, error) {
	need, limit := r.GetRequiredBytes(), r.GetLimitBytes()
	if need < 0 || limit < 0 {
		return sizeRange{}, fmt.Errorf("%w: capacity range %d to %d has a negative end", errInvalid, need, limit)
	}
	if limit > 0 && need > limit {
		return sizeRange{}, fmt.Errorf("%w: capacity range asks for at least %d and at most %d bytes", errRange, need, limit)
	}
	if need > maxVolume {
		return sizeRange{}, fmt.Errorf("%w: %d bytes asked for, a VHDX file holds at most 64Ti", errRange, need)
	}
	got := need
	if need > 0 || limit > 0 && limit < least {
		got = max(need, least)
	}
	got = (got + sector - 1) / sector * sector
	if limit > 0 && got > limit {
		return sizeRange{}, fmt.Errorf("%w: at least %d bytes needed (smallest size %s, whole sectors of %d), at most %d allowed",
			errRange, got, formatQuantity(max(least, sector)), sector, limit)
	}
	return sizeRange{need: got, limit: limit}, nil
}

// maxVolume is the largest virtual disk the format can describe.
const maxVolume = 64 << 40

// leastSize is the smallest volume for a purpose.
func leastSize(mounts bool, fsType string) int64 {
	if !mounts {
		return 0
	}
	return smallest[fsType]
}
