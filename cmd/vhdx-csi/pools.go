package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

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

// openPools opens every pool of the command line.
func (o *options) openPools() (*pool.Set, []driver.Pool, error) {
	specs, err := o.poolSpecs()
	if err != nil {
		return nil, nil, err
	}
	var open []*pool.Pool
	var pools []driver.Pool
	closeAll := func(err error) error {
		for _, p := range open {
			err = errors.Join(err, p.Close())
		}
		return err
	}
	for _, s := range specs {
		s.Holder = o.nodeID
		p, err := pool.Open(s.Options)
		if err != nil {
			return nil, nil, closeAll(err) // it names the pool
		}
		open = append(open, p)
		pools = append(pools, driver.Pool{Name: s.Name, Local: s.local, Capacity: p.Capacity})
	}
	set, err := pool.NewSet(open...)
	if err != nil {
		return nil, nil, closeAll(fmt.Errorf("join the pools: %w", err))
	}
	return set, pools, nil
}
