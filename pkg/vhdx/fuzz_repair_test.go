package vhdx_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

// FuzzRepair repairs hostile images, made as FuzzOpen makes them. Afterwards
// the image opens, or is refused as the last check says; what opened before
// shows what it showed; a repair of that finds nothing to do, but for lost space
// beside damage; and where there was nothing to mend the file is as it was.
func FuzzRepair(f *testing.F) {
	seedImages(f)
	f.Fuzz(func(t *testing.T, in []byte) {
		file := fuzzImage(in)
		if file == nil {
			return
		}
		if err := repairHostile(t, file); err != nil {
			t.Fatal(err)
		}
	})
}

func repairHostile(t *testing.T, file *vhdxtest.File) error {
	before, shown := file.Hash(), showAll(file)
	r, err := vhdx.Repair(t.Context(), file, vhdx.RepairOptions{PerCode: 5})
	if err != nil {
		return tolerable(err, file, shown)
	}
	if len(r.Done) == 0 {
		if file.Hash() != before {
			return errors.New("the repair of an image without repairable findings changed it")
		}
		return nil
	}
	if why := disagreement(file, r.After, nil); why != "" {
		return fmt.Errorf("repaired (%v): %s: %v", r.Done, why, r.After.Findings)
	}
	if shown != nil && !bytes.Equal(shown, showAll(file)) {
		return fmt.Errorf("repaired (%v), it shows something else", r.Done)
	}
	if r.Corrupt() { // lost space is left for a second repair
		if _, err := vhdx.Repair(t.Context(), file, vhdx.RepairOptions{PerCode: 5}); err != nil {
			return fmt.Errorf("repaired (%v), a second repair fails: %w", r.Done, err)
		}
	}
	after := file.Hash()
	again, err := vhdx.Repair(t.Context(), file, vhdx.RepairOptions{PerCode: 5})
	if err != nil || len(again.Done) > 0 || file.Hash() != after {
		return fmt.Errorf("repaired (%v), a second repair finds work: %v, %w", r.Done, again.Done, err)
	}
	return nil
}

// tolerable: a repair may be refused, and leaves what was shown.
func tolerable(err error, file *vhdxtest.File, shown []byte) error {
	if shown != nil && !bytes.Equal(shown, showAll(file)) {
		return fmt.Errorf("a repair that failed (%w) has changed what is shown", err)
	}
	for _, known := range []error{vhdx.ErrNotVHDX, vhdx.ErrUnsupported, vhdx.ErrCorrupt} {
		if errors.Is(err, known) {
			return nil
		}
	}
	return err
}

// showAll returns what is not zero on the disk that a file shows; nil if it
// does not open.
func showAll(file *vhdxtest.File) []byte {
	im, err := vhdx.Open(file.Clone(), vhdx.OpenOptions{ReadOnly: true, NoParents: true})
	if err != nil {
		return nil
	}
	defer im.Close()
	shown := fmt.Appendf(nil, "%d:", im.Size())
	buf, zero := make([]byte, 256*kib), make([]byte, 256*kib)
	for off := int64(0); off < min(im.Size(), 64*mib); off += int64(len(buf)) {
		n, err := im.ReadAt(buf, off)
		if err != nil && !errors.Is(err, io.EOF) {
			shown = fmt.Appendf(shown, "%d: cannot be read;", off)
			continue
		}
		if !bytes.Equal(buf[:n], zero[:n]) {
			shown = append(fmt.Appendf(shown, "%d:", off), buf[:n]...)
		}
	}
	return shown
}
