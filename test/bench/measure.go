package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
)

// workload is one line of the table.
type workload struct {
	name  string
	unit  string
	fresh bool // on a fresh image, written once from its beginning
	rw    string
	bs    string
	depth int
	fsync bool
}

func workloads() []workload {
	w := []workload{
		{name: "1 MiB sequential write, fresh dynamic image", unit: "MB/s", fresh: true, rw: "write", bs: "1m", depth: seqDepth},
		{name: "1 MiB sequential write, allocated image", unit: "MB/s", rw: "write", bs: "1m", depth: seqDepth},
		{name: "1 MiB sequential read", unit: "MB/s", rw: "read", bs: "1m", depth: seqDepth},
	}
	for _, rw := range []string{"read", "write"} {
		for _, depth := range []int{1, 16, 32} {
			w = append(w, workload{name: fmt.Sprintf("4 KiB random %s, depth %d", rw, depth), unit: "IOPS", rw: "rand" + rw, bs: "4k", depth: depth})
		}
	}
	return append(w, workload{name: "4 KiB random write, each synced", unit: "IOPS", rw: "randwrite", bs: "4k", depth: 1, fsync: true})
}

const (
	seqDepth = 4
	// freshSize is how much of a fresh image is written.
	freshSize = int64(512) << 20
)

// bench is one run.
type bench struct {
	o       options
	targets []target
	devs    map[string]device // of the allocated images
	t       *table
}

func measure(ctx context.Context, o options) (_ *table, err error) {
	b := &bench{o: o, targets: targets(), devs: map[string]device{}, t: &table{options: o}}
	var want []workload
	only, err := regexp.Compile(o.only)
	if err != nil {
		return nil, err
	}
	for _, w := range workloads() {
		if only.MatchString(w.name) {
			want = append(want, w)
		}
	}
	defer func() { err = errors.Join(err, b.finish(context.WithoutCancel(ctx))) }()
	if err := b.prepare(ctx); err != nil {
		return nil, err
	}
	for round := range o.rounds {
		fmt.Fprintf(os.Stderr, "round %d of %d\n", round+1, o.rounds)
		for _, w := range want {
			if err := b.one(ctx, w, round); err != nil {
				return nil, err
			}
		}
	}
	return b.t, nil
}

func (b *bench) image(t target) string { return join(b.o.dir, "allocated-"+t.name) }

// prepare makes the three images and writes every byte of their working set.
func (b *bench) prepare(ctx context.Context) error {
	for _, t := range b.targets {
		fmt.Fprintf(os.Stderr, "writing %d MiB to %s\n", b.o.size>>20, t.name)
		if err := t.create(ctx, b.image(t), b.o.size, 0); err != nil {
			return err
		}
		d, err := t.attach(ctx, b.image(t))
		if err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
		b.devs[t.name] = d
		if _, err := fio(ctx, d.path, "--rw=write", "--bs=1m", "--iodepth=4", "--end_fsync=1"); err != nil {
			return err
		}
	}
	return nil
}

// finish detaches everything and checks the images.
func (b *bench) finish(ctx context.Context) (err error) {
	for _, t := range b.targets {
		if d, ok := b.devs[t.name]; ok {
			err = errors.Join(err, d.detach(), t.clean(ctx, b.image(t)))
		}
	}
	return err
}

// one measures a workload on all targets, one after the other. Each round
// begins with another one.
func (b *bench) one(ctx context.Context, w workload, round int) error {
	row := b.t.row(w)
	for i := range b.targets {
		t := b.targets[(i+round)%len(b.targets)]
		if err := calm(ctx, b.o.calm); err != nil {
			return err
		}
		var v float64
		var err error
		if w.fresh {
			v, err = b.freshImage(ctx, t, w)
		} else {
			v, err = fio(ctx, b.devs[t.name].path, w.args(b.o.runtime(), "--time_based")...)
		}
		if err != nil {
			return fmt.Errorf("%s, %s: %w", w.name, t.name, err)
		}
		row.add(t.name, v)
	}
	return nil
}

func (w workload) args(more ...string) []string {
	args := append([]string{"--rw=" + w.rw, "--bs=" + w.bs, fmt.Sprint("--iodepth=", w.depth)}, more...)
	if w.fsync {
		args = append(args, "--fsync=1")
	}
	return args
}

func (b *bench) freshImage(ctx context.Context, t target, w workload) (v float64, err error) {
	path := join(b.o.dir, "fresh-"+t.name)
	if err := t.create(ctx, path, b.o.size, 0); err != nil {
		return 0, err
	}
	d, err := t.attach(ctx, path)
	if err != nil {
		return 0, err
	}
	v, err = fio(ctx, d.path, w.args(fmt.Sprint("--size=", min(freshSize, b.o.size)), "--end_fsync=1")...)
	return v, errors.Join(err, d.detach(), t.clean(context.WithoutCancel(ctx), path), os.Remove(path))
}

// fio runs one job and returns MB/s for jobs of 1 MiB, IOPS for others. The
// time of the final sync counts.
func fio(ctx context.Context, dev string, args ...string) (float64, error) {
	s, err := fioJob(ctx, dev, args...)
	if err != nil {
		return 0, err
	}
	if s.Bytes/s.IOs > 1<<19 {
		return s.Bytes / s.Runtime / 1000, nil
	}
	return s.IOs / s.Runtime * 1000, nil
}

// side is what fio reports of a job's reads or writes.
type side struct {
	Bytes   float64 `json:"io_bytes"`
	IOs     float64 `json:"total_ios"`
	Runtime float64 `json:"runtime"` // ms
}

func fioJob(ctx context.Context, dev string, args ...string) (s side, err error) {
	cmd := exec.CommandContext(ctx, "fio", append([]string{
		"--name=bench", "--filename=" + dev, "--direct=1", "--ioengine=io_uring", "--output-format=json",
		"--norandommap", "--randrepeat=0", "--invalidate=0",
	}, args...)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return s, fmt.Errorf("fio: %w\n%s", err, stderr.String())
	}
	var report struct {
		Jobs []struct{ Read, Write side }
	}
	if err := json.Unmarshal(out, &report); err != nil {
		return s, fmt.Errorf("fio's report: %w\n%s", err, out)
	}
	if len(report.Jobs) != 1 {
		return s, fmt.Errorf("fio's report has %d jobs\n%s", len(report.Jobs), out)
	}
	if s = report.Jobs[0].Read; s.IOs == 0 {
		s = report.Jobs[0].Write
	}
	if s.IOs == 0 || s.Runtime == 0 {
		return s, fmt.Errorf("fio did nothing:\n%s", out)
	}
	return s, nil
}

// runtime is in milliseconds: fio takes half a second as none.
func (o options) runtime() string { return fmt.Sprintf("--runtime=%dms", int(o.seconds*1000)) }
