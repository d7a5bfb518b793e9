package vhdx_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

// crashOracle has QEMU open what power cuts leave of one workload.
type crashOracle struct {
	t      *testing.T
	dir    string
	stride int // of the steps one in so many is cut
	states int
	dirty  int // of them with a log to replay
	err    error
}

// TestOracleAfterPowerCuts: QEMU replays what a cut leaves among discards,
// sizes and compactions, finds no error, and sees the disk that we see.
func TestOracleAfterPowerCuts(t *testing.T) {
	skipSlowRace(t)
	oracle(t, "qemu-img")
	for _, kind := range workloads {
		if kind.create.Size > 64*mib || kind.create.LogicalSectorSize == 4096 || kind.journal || kind.writers > 0 || kind.child != nil {
			continue
		}
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			o := &crashOracle{t: t, dir: t.TempDir(), stride: 11}
			if testing.Short() {
				o.stride = 37
			}
			h := newHarness(7, newVisits())
			h.look = o.look
			if err := errors.Join(h.runWorkload(kind), o.err); err != nil {
				t.Fatal(err)
			}
			if o.states == 0 || o.dirty == 0 {
				t.Fatalf("%d states, %d of them with a log: nothing was asked", o.states, o.dirty)
			}
			t.Logf("%d states, %d with a log", o.states, o.dirty)
		})
	}
}

func (o *crashOracle) look(s *vhdxtest.Snapshot) {
	if s.Step()%o.stride != 0 || o.err != nil {
		return
	}
	plan := s.Plan(7, s.Step()/o.stride%12)
	if err := o.judge(s.Image(plan)); err != nil {
		o.err = fmt.Errorf("step %d, %s: %w\nnot durable then:\n%v", s.Step(), plan.Name, err, s)
	}
}

func (o *crashOracle) judge(image *vhdxtest.File) error {
	path, raw := filepath.Join(o.dir, "cut.vhdx"), filepath.Join(o.dir, "raw")
	if err := saveSparse(image, path); err != nil {
		return err
	}
	im, err := vhdx.Open(image.Clone(), vhdx.OpenOptions{ReadOnly: true})
	if err != nil {
		return err
	}
	disk := make([]byte, im.Size())
	o.states++
	if im.Info().Replay.Entries > 0 {
		o.dirty++
	}
	if _, err := im.ReadAt(disk, 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := errors.Join(im.Close(), os.WriteFile(raw, disk, 0o600)); err != nil {
		return err
	}
	ask(o.t, "qemu-img", "check", "-q", "-f", "vhdx", "-r", "all", path)
	askCheck(o.t, path)
	askCompare(o.t, path, raw)
	return nil
}

// saveSparse writes a file in memory to a new file.
func saveSparse(f *vhdxtest.File, path string) error {
	size, err := f.Size()
	if err != nil {
		return err
	}
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	err = out.Truncate(size)
	if err == nil {
		err = f.NonZero(0, size, func(off int64, data []byte) error {
			_, err := out.WriteAt(data[:min(int64(len(data)), size-off)], off)
			return err
		})
	}
	return errors.Join(err, out.Close())
}
