package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"k8s.io/klog/v2"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// MutableParameter is one key that a VolumeAttributesClass may have.
type MutableParameter struct {
	Key    string
	Values string // which values are valid, for people
	set    func(c *pool.Change, value string) error
}

// MutableParameters lists every parameter of a VolumeAttributesClass, sorted by key.
func MutableParameters() []MutableParameter {
	return []MutableParameter{
		{"bandwidth", "bytes a second, such as 50Mi; 0: no limit", func(c *pool.Change, v string) (err error) {
			c.Bandwidth, err = rate(v, pool.MaxRate, ParseQuantity)
			return err
		}},
		{"burst", "seconds from 0 to 3600 for which unused allowance is kept", func(c *pool.Change, v string) (err error) {
			c.Burst, err = rate(v, pool.MaxBurst, parseCount)
			return err
		}},
		{"iops", "requests a second, such as 500; 0: no limit", func(c *pool.Change, v string) (err error) {
			c.IOPS, err = rate(v, pool.MaxRate, parseCount)
			return err
		}},
		{"onFull", onFullValues, func(c *pool.Change, v string) error {
			o, err := parseOnFull(v)
			c.OnFull = &o
			return err
		}},
	}
}

const onFullValues = "pause or error; default pause, where the share lets that be"

func parseOnFull(v string) (pool.OnFull, error) {
	switch o := pool.OnFull(v); o {
	case pool.OnFullPause, pool.OnFullError:
		return o, nil
	}
	return "", fmt.Errorf("no such choice")
}

func rate(v string, most int64, parse func(string) (int64, error)) (*int64, error) {
	n, err := parse(v)
	if err == nil && n > most {
		err = fmt.Errorf("more than %d", most)
	}
	return &n, err
}

// parseCount reads a whole number without a sign.
func parseCount(v string) (int64, error) {
	n, err := strconv.ParseUint(v, 10, 63)
	if err != nil {
		return 0, fmt.Errorf("no whole number")
	}
	return int64(n), nil
}

// parseMutable reads all of the parameters or none of them (I-DRV-9).
func parseMutable(given map[string]string) (pool.Change, error) {
	known := MutableParameters()
	var c pool.Change
	for _, key := range slices.Sorted(maps.Keys(given)) {
		i := slices.IndexFunc(known, func(p MutableParameter) bool { return p.Key == key })
		if i < 0 {
			var all []string
			for _, p := range known {
				all = append(all, fmt.Sprintf("%s (%s)", p.Key, p.Values))
			}
			return pool.Change{}, fmt.Errorf("%w: unknown mutable parameter %q; valid are: %s", errInvalid, key, strings.Join(all, "; "))
		}
		if err := known[i].set(&c, given[key]); err != nil {
			return pool.Change{}, fmt.Errorf("%w: mutable parameter %s=%q: %w; valid: %s", errInvalid, key, given[key], err, known[i].Values)
		}
	}
	return c, nil
}

// ControllerModifyVolume records the change, durably, and then has the node
// that serves the volume follow. A node that cannot be told now reads the
// record when it serves the volume the next time; the caller comes again.
func (s *controller) ControllerModifyVolume(ctx context.Context, r *csi.ControllerModifyVolumeRequest) (*csi.ControllerModifyVolumeResponse, error) {
	id := r.GetVolumeId()
	if err := required("volume_id", id); err != nil {
		return nil, err
	}
	change, err := parseMutable(r.GetMutableParameters())
	if err != nil {
		return nil, err
	}
	err = only(ctx, s.work, id, "ControllerModifyVolume", func(ctx context.Context) error {
		v, err := s.Volumes.Modify(ctx, id, change)
		if err != nil {
			return err
		}
		klog.FromContext(ctx).Info("Volume changed", "volume", id, "limits", v.Limits, "onFull", string(v.OnFull))
		if s.Holders == nil {
			return nil
		}
		if err := s.Holders.Follow(ctx, id); !errors.Is(err, control.ErrNotHeld) {
			return err
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &csi.ControllerModifyVolumeResponse{}, nil
}
