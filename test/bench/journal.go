package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
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

// journalCost compares ours with a volatile journal against ours without one.
// Each figure of the one is taken right after one of the other.
func journalCost(ctx context.Context, o options, out io.Writer) error {
	variants := []target{
		{"without", createOurs, attachOurs(nil, "serve"), true},
		{"with", createOurs, attachOurs(nil, "serve-journal"), true},
	}
	type line struct {
		name  string
		depth int
		fresh bool
	}
	lines := []line{
		{"4 KiB random write, allocated, depth 1", 1, false},
		{"4 KiB random write, allocated, depth 16", 16, false},
		{"4 KiB write, each to a new block, depth 1", 1, true},
		{"4 KiB write, each to a new block, depth 16", 16, true},
	}
	_, _ = fmt.Fprintf(out, "\nWhat the volatile journal costs, in IOPS:\n")
	tw := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintf(tw, "\twithout\twith\twith / without\tspread of the rounds\t\n")
	for _, l := range lines {
		fmt.Fprintf(os.Stderr, "journal: %s\n", l.name)
		figures := [2][]float64{}
		for round := range o.journal {
			for i := range variants {
				which := (i + round) % 2
				if err := calm(ctx, o.calm); err != nil {
					return err
				}
				v, err := journalFigure(ctx, o, variants[which], l.depth, l.fresh)
				if err != nil {
					return fmt.Errorf("%s, %s journal: %w", l.name, variants[which].name, err)
				}
				figures[which] = append(figures[which], v)
			}
		}
		var ratios []float64
		for i := range figures[0] {
			ratios = append(ratios, figures[1][i]/figures[0][i])
		}
		low, high := spread(ratios)
		_, _ = fmt.Fprintf(tw, "%s\t%.0f\t%.0f\t%.3f\t%.2f to %.2f\t\n", l.name, median(figures[0]), median(figures[1]), median(ratios), low, high)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	record, err := recordCost()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "One record alone: %v of processor time, the least of several tries.\n", record)
	return err
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

// journalFigure makes an image, measures on it and removes it.
func journalFigure(ctx context.Context, o options, t target, depth int, fresh bool) (v float64, err error) {
	path := join(o.dir, "journal-"+t.name)
	size := newBlocks * newBlock
	if err := t.create(ctx, path, size, newBlock); err != nil {
		return 0, err
	}
	d, err := t.attach(ctx, path)
	if err != nil {
		return 0, err
	}
	defer func() {
		err = errors.Join(err, d.detach(), t.clean(context.WithoutCancel(ctx), path), os.Remove(path))
	}()
	if fresh {
		return fio(ctx, d.path, allocating, "--bs=4k", fmt.Sprint("--iodepth=", depth), fmt.Sprint("--size=", size), fmt.Sprint("--io_size=", newBlocks*4096))
	}
	span := fmt.Sprint("--size=", min(o.size, 256<<20))
	if _, err := fio(ctx, d.path, "--rw=write", "--bs=1m", "--iodepth=4", "--end_fsync=1", span); err != nil {
		return 0, err
	}
	return fio(ctx, d.path, "--rw=randwrite", "--bs=4k", fmt.Sprint("--iodepth=", depth), span,
		fmt.Sprintf("--runtime=%.1f", o.seconds), "--time_based")
}

func spread(v []float64) (low, high float64) {
	for i, x := range v {
		if i == 0 || x < low {
			low = x
		}
		if i == 0 || x > high {
			high = x
		}
	}
	return low, high
}
