package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

const (
	// journalSize is that of the memory of a volatile journal.
	journalSize = 1 << 20
	// Writes that allocate go to one block after the other, the smallest there
	// are, so that as many as possible fit into a measurement.
	newBlock   = int64(1) << 20
	newBlocks  = int64(4096)
	allocating = "--rw=write:1020k" // 4 KiB, then a step to the next block
)

// newJournal makes a volatile journal as a keeper holds one.
func newJournal() (vhdx.Journal, error) {
	fd, err := unix.MemfdCreate("vhdx-bench", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Ftruncate(fd, journalSize); err != nil {
		return nil, err
	}
	mem, err := unix.Mmap(fd, 0, journalSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, err
	}
	return vhdx.NewRing(mem)
}

// journalLine is one line of the comparison.
type journalLine struct {
	name  string
	depth int
	fresh bool // each write goes to a new block
}

// journalFigure is what one measurement gives.
type journalFigure struct {
	iops float64
	cpu  float64 // µs of the server's processor time per write, in the kernel too
}

// journalCost compares ours with a volatile journal against ours without one.
// Each figure of the one is taken right after one of the other.
func journalCost(ctx context.Context, o options, out io.Writer) error {
	variants := [2]target{
		{"without", createOurs, attachOurs(nil, "serve"), true},
		{"with", createOurs, attachOurs(nil, "serve-journal"), true},
	}
	_, _ = fmt.Fprintf(out, "\nWhat the volatile journal costs, for writes of 4 KiB:\n")
	tw := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintf(tw, "\tIOPS without\twith\twith / without\tspread\tµs of processor without\twith\twith / without\tspread\t\n")
	for _, l := range []journalLine{
		{"to allocated blocks, depth 1", 1, false},
		{"to allocated blocks, depth 16", 16, false},
		{"each to a new block, depth 1", 1, true},
		{"each to a new block, depth 16", 16, true},
	} {
		fmt.Fprintf(os.Stderr, "journal: %s\n", l.name)
		var figures [2][]journalFigure
		for round := range o.journal {
			for i := range variants {
				which := (i + round) % 2
				if err := calm(ctx, o.calm); err != nil {
					return err
				}
				f, err := journalMeasure(ctx, o, variants[which], l)
				if err != nil {
					return fmt.Errorf("%s, %s journal: %w", l.name, variants[which].name, err)
				}
				figures[which] = append(figures[which], f)
			}
		}
		_, _ = fmt.Fprintf(tw, "%s\t%s\t%s\t\n", l.name,
			compare(figures, "%.0f", func(f journalFigure) float64 { return f.iops }),
			compare(figures, "%.1f", func(f journalFigure) float64 { return f.cpu }))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	record, err := recordCost()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "Medians of %d rounds; ratios are those of the median round, spread is the lowest and the highest. One record alone: %v, the least of several tries.\n", o.journal, record)
	return err
}

// compare formats one quantity of both variants, its ratio and its spread.
func compare(figures [2][]journalFigure, format string, of func(journalFigure) float64) string {
	var v [2][]float64
	var ratios []float64
	for i := range figures[0] {
		for which := range figures {
			v[which] = append(v[which], of(figures[which][i]))
		}
		ratios = append(ratios, v[1][i]/v[0][i])
	}
	return fmt.Sprintf(format+"\t"+format+"\t%.3f\t%.2f to %.2f", median(v[0]), median(v[1]), median(ratios), slices.Min(ratios), slices.Max(ratios))
}

// recordCost is what one record costs in the process alone.
func recordCost() (least time.Duration, err error) {
	const records = 10000
	for try := range 20 {
		j, err := newJournal()
		if err != nil {
			return 0, err
		}
		began := time.Now()
		for i := range uint64(records) {
			r := vhdx.JournalRecord{Seq: i + 1, Kind: vhdx.JournalMapped, Entry: i, Value: i<<20 | 6}
			if err := j.Record(r); err != nil {
				return 0, err
			}
		}
		if took := time.Since(began) / records; try == 0 || took < least {
			least = took
		}
	}
	return least, nil
}

// journalMeasure makes an image, measures on it and removes it.
func journalMeasure(ctx context.Context, o options, t target, l journalLine) (f journalFigure, err error) {
	path := join(o.dir, "journal-"+t.name)
	size := newBlocks * newBlock
	if err := t.create(ctx, path, size, newBlock); err != nil {
		return f, err
	}
	d, err := t.attach(ctx, path)
	if err != nil {
		return f, err
	}
	defer func() {
		err = errors.Join(err, d.detach(), t.clean(context.WithoutCancel(ctx), path), os.Remove(path))
	}()
	args := []string{"--bs=4k", fmt.Sprint("--iodepth=", l.depth)}
	if l.fresh {
		args = append(args, allocating, fmt.Sprint("--size=", size), fmt.Sprint("--io_size=", newBlocks*4096))
	} else {
		span := fmt.Sprint("--size=", min(o.size, 256<<20))
		if _, err := fio(ctx, d.path, "--rw=write", "--bs=1m", "--iodepth=4", "--end_fsync=1", span); err != nil {
			return f, err
		}
		args = append(args, "--rw=randwrite", span, o.runtime(), "--time_based")
	}
	before, err := onProcessor(d.pid)
	if err != nil {
		return f, err
	}
	s, err := fioJob(ctx, d.path, args...)
	if err != nil {
		return f, err
	}
	after, err := onProcessor(d.pid)
	return journalFigure{iops: s.IOs / s.Runtime * 1000, cpu: float64((after - before).Microseconds()) / s.IOs}, err
}

// onProcessor is how long the threads of a process have run.
func onProcessor(pid int) (sum time.Duration, err error) {
	paths, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err == nil && len(paths) == 0 {
		err = errors.New("the kernel keeps no schedstat")
	}
	for _, path := range paths {
		var ns int64
		b, rerr := os.ReadFile(path)
		if errors.Is(rerr, fs.ErrNotExist) || errors.Is(rerr, unix.ESRCH) {
			continue // the thread has ended
		}
		if _, serr := fmt.Sscan(string(b), &ns); rerr == nil {
			rerr = serr
		}
		err = errors.Join(err, rerr)
		sum += time.Duration(ns)
	}
	return sum, err
}
