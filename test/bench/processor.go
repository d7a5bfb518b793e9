package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

const (
	batchWrites = 64
	batches     = 150
)

// processorCost compares, in this process, the processor time of a write with
// and without a journal, on files in memory: what other work on the machine
// takes is not counted, and the batches that it disturbed are not the quarter
// that counts.
func processorCost(out io.Writer) (err error) {
	dir, err := os.MkdirTemp("/dev/shm", "vhdx-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	var images [2]*vhdx.Image
	for i := range images {
		path, opts := join(dir, fmt.Sprint(i)), vhdx.OpenOptions{}
		if _, err := vhdx.Create(path, vhdx.CreateOptions{Size: 2 * batches * batchWrites * newBlock, BlockSize: newBlock}); err != nil {
			return err
		}
		if i == 1 {
			if opts.Journal, err = newJournal(); err != nil {
				return err
			}
		}
		im, err := vhdx.OpenPath(path, opts)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, im.Close()) }()
		images[i] = im
	}
	_, _ = fmt.Fprintf(out, "\nThe same in one process, on files in memory, in ns of the writing thread's processor time:\n")
	tw := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintf(tw, "\twithout\twith\twith / without\t\n")
	for _, l := range []struct {
		name string
		at   func(write int64) int64
	}{
		{"each to a new block", func(n int64) int64 { return n * newBlock }},
		{"to allocated blocks", func(n int64) int64 { return n*newBlock + 8192 }},
	} {
		ns, err := alternate(images, l.at)
		if err != nil {
			return err
		}
		_, _ = fmt.Fprintf(tw, "%s\t%.0f\t%.0f\t%.3f\t\n", l.name, ns[0], ns[1], ns[1]/ns[0])
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "The lower quartile of %d batches of %d writes of 4 KiB, by turns.\n", batches, batchWrites)
	return err
}

// alternate measures batches on the one image and the other by turns and gives
// the lower quartile of each, per write.
func alternate(images [2]*vhdx.Image, at func(write int64) int64) (ns [2]float64, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	buf, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return ns, err
	}
	defer func() { _ = unix.Munmap(buf) }()
	buf[0] = 1
	var took [2][]float64
	for batch := range int64(batches) {
		for i := range images {
			which := (int64(i) + batch) % 2
			before := threadTime()
			for n := range int64(batchWrites) {
				if _, err := images[which].WriteAt(buf, at(batch*batchWrites+n)); err != nil {
					return ns, err
				}
			}
			took[which] = append(took[which], float64(threadTime()-before)/batchWrites)
		}
	}
	for i, v := range took {
		slices.Sort(v)
		ns[i] = v[len(v)/4]
	}
	return ns, nil
}

func threadTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		panic(err) // every kernel has it
	}
	return time.Duration(t.Nano())
}
