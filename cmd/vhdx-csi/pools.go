package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/driver"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// poolSpec is one --pool.
type poolSpec struct {
	pool.Options
	local bool
}

// parsePool reads name=directory[,option...].
func parsePool(arg string) (poolSpec, error) {
	head, rest, _ := strings.Cut(arg, ",")
	name, dir, ok := strings.Cut(head, "=")
	if !ok || name == "" || dir == "" {
		return poolSpec{}, fmt.Errorf("--pool=%s: write name=directory[,option...]", arg)
	}
	if !filepath.IsAbs(dir) {
		return poolSpec{}, fmt.Errorf("--pool=%s: give the directory as an absolute path", arg)
	}
	p := poolSpec{Options: pool.Options{Name: name, Dir: filepath.Clean(dir)}}
	for o := range strings.SplitSeq(rest, ",") {
		if err := p.option(o); err != nil {
			return poolSpec{}, fmt.Errorf("--pool=%s: %w", arg, err)
		}
	}
	return p, nil
}

func (p *poolSpec) option(text string) (err error) {
	key, value, _ := strings.Cut(text, "=")
	switch key {
	case "":
	case "local":
		p.local = true
	case "allow-unsafe":
		p.AllowUnsafe = true
	case "overcommit":
		p.Overcommit, err = strconv.ParseFloat(value, 64)
		if err != nil || !(p.Overcommit >= 0.1 && p.Overcommit <= 1000) {
			return fmt.Errorf("overcommit=%s: give a number from 0.1 to 1000", value)
		}
		return nil
	case "reserve":
		p.Reserve, err = driver.ParseQuantity(value)
		return err
	default:
		return fmt.Errorf("unknown option %q; there is local, overcommit=N, reserve=SIZE and allow-unsafe", key)
	}
	if value != "" {
		return fmt.Errorf("option %s takes no value", key)
	}
	return nil
}

// poolSpecs reads all --pool flags, or makes up the embedded default.
func (o *options) poolSpecs() ([]poolSpec, error) {
	if len(o.pools) == 0 {
		dir := filepath.Join(o.stateDir, "pool")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make the default pool: %w", err)
		}
		return []poolSpec{{Options: pool.Options{Name: defaultPool, Dir: dir}, local: true}}, nil
	}
	var specs []poolSpec
	for _, arg := range o.pools {
		p, err := parsePool(arg)
		if err != nil {
			return nil, err
		}
		specs = append(specs, p)
	}
	return specs, nil
}

// sharePatience is how long the start waits for a share. The volumes of all
// others wait meanwhile.
const sharePatience = 5 * time.Second

// openPools opens every pool of the command line.
func (o *options) openPools(ctx context.Context) (*pool.Set, []driver.Pool, error) {
	specs, err := o.poolSpecs()
	if err != nil {
		return nil, nil, err
	}
	log := klog.FromContext(ctx)
	note := func(name string, err error) {
		if err != nil {
			log.Error(err, "A pool is not available and is tried again", "pool", name)
			return
		}
		log.Info("A pool is available again", "pool", name)
	}
	holder, err := o.holder()
	if err != nil {
		return nil, nil, err
	}
	var open []pool.Options
	for _, s := range specs {
		s.Holder = holder
		open = append(open, s.Options)
	}
	set, err := pool.OpenSet(ctx, sharePatience, note, open...)
	if err != nil {
		return nil, nil, err // it names the pool
	}
	var pools []driver.Pool
	for _, s := range specs {
		p := driver.Pool{Name: s.Name, Capacity: func(ctx context.Context) (pool.Capacity, error) {
			p, err := set.Pool(s.Name)
			if err != nil {
				return pool.Capacity{}, err
			}
			return p.Capacity(ctx)
		}}
		if s.local {
			p.OnlyOn = o.nodeID
		}
		pools = append(pools, p)
	}
	return set, pools, nil
}

// holder is who has an image open, as other processes read it. A process of the
// same holder that cannot be seen counts as dead, its I/O as still under way; so
// a controller, which lives beside the node plugin in a container of its own,
// does not call itself by the node's name.
func (o *options) holder() (string, error) {
	if o.mode != modeController {
		return o.nodeID, nil
	}
	host, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("name the holder of leases: %w", err)
	}
	return host, nil
}
