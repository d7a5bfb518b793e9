package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/bits"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// plainCommand, as the first argument, makes this program the control of the
// lines on layers: it reads what vhdxctl bench reads of an image, in the same
// order, at the same places of the same files, by pread alone. Where the files
// are many it shows what that costs whoever reads them.
const plainCommand = "plain"

const plainRequest = 4096

// spot is where a request lies.
type spot struct {
	fd  int
	off int64
}

// plain is the control's command line: plain -jobs N -count N IMAGE. It prints
// the time that the reads took, as vhdxctl bench --json does.
func plain(args []string, out io.Writer) error {
	f := flag.NewFlagSet(plainCommand, flag.ContinueOnError)
	jobs, count := f.Int("jobs", 1, "requests at once"), f.Int("count", 1, "requests")
	if err := f.Parse(args); err != nil {
		return err
	}
	spots, err := findSpots(f.Arg(0), *count)
	if err != nil {
		return err
	}
	took, err := readSpots(spots, *jobs)
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(map[string]float64{"seconds": took.Seconds()})
}

// findSpots resolves the requests. The files stay open until the process ends.
func findSpots(image string, count int) (spots []spot, err error) {
	im, err := vhdx.OpenPath(image, vhdx.OpenOptions{ReadOnly: true, Parents: vhdx.ParentsIn(filepath.Dir(image))})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, im.Close()) }()
	step, err := strconv.ParseUint(randomStep, 10, 64)
	if err != nil {
		return nil, err
	}
	layers, files := im.Layers(), map[int]int{}
	room := uint64(im.Size())
	var r vhdx.Resolution
	for n := range uint64(count) {
		hi, lo := bits.Mul64(n%room, step%room)
		if err := im.Resolve(false, int64(bits.Rem64(hi, lo, room)), plainRequest, &r); err != nil {
			return nil, err
		}
		e := r.Extents[0]
		r.Abort()
		if e.Length != plainRequest || e.FileOffset < 0 {
			return nil, fmt.Errorf("%s: no data at %#x", image, e.Offset)
		}
		if _, ok := files[e.Layer]; !ok {
			if files[e.Layer], err = unix.Open(layers[e.Layer].File, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0); err != nil {
				return nil, fmt.Errorf("open %s: %w", layers[e.Layer].File, err)
			}
		}
		spots = append(spots, spot{files[e.Layer], e.FileOffset})
	}
	return spots, nil
}

// readSpots reads them all, so many at once.
func readSpots(spots []spot, jobs int) (time.Duration, error) {
	mem, err := unix.Mmap(-1, 0, jobs*plainRequest, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_POPULATE)
	if err != nil {
		return 0, err
	}
	defer unix.Munmap(mem) //nolint:errcheck // of our own mapping
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, jobs)
	began := time.Now()
	for i := range jobs {
		buf := mem[i*plainRequest:][:plainRequest:plainRequest]
		wg.Go(func() {
			for n := next.Add(1) - 1; n < int64(len(spots)); n = next.Add(1) - 1 {
				if got, err := unix.Pread(spots[n].fd, buf, spots[n].off); err != nil || got != len(buf) {
					errs[i] = fmt.Errorf("pread of %d at %#x: %d bytes: %w", len(buf), spots[n].off, got, err)
					return
				}
			}
		})
	}
	wg.Wait()
	return time.Since(began), errors.Join(errs...)
}
