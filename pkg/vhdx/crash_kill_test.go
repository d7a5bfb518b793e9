package vhdx_test

import (
	"errors"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

// The device and its guest outlive the process that serves them: the flush
// that a successor answers covers what its predecessor has answered (I-SYNC-1).
func TestFlushCoversThePredecessorsWrites(t *testing.T) {
	for name, journalled := range map[string]bool{"with a journal": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			w := &run{h: newHarness(1, newVisits()), kind: &workload{
				create: vhdx.CreateOptions{Size: 8 * mib, BlockSize: mib}, journal: journalled,
			}}
			w.file = vhdxtest.NewFile("a.vhdx")
			if _, err := vhdx.CreateOn(w.file, w.kind.create); err != nil {
				t.Fatalf("CreateOn: %v", err)
			}
			var err error
			w.session, err = newSession(w.file.Clone(), vhdxtest.NewModel(1, 8*mib), vhdxtest.NewObserved(8*mib))
			if err != nil {
				t.Fatal(err)
			}
			w.session.blockSize = mib
			for i, step := range []func() error{
				func() error { return w.open(nil) },
				func() error { return w.write(vhdxtest.Extent{Off: 0, N: 512}) },
				w.flush,
				func() error { return w.write(vhdxtest.Extent{Off: 0, N: 512}) },
				w.kill,
				w.flush,
			} {
				if err := step(); err != nil {
					t.Fatalf("step %d: %v", i, err)
				}
			}
			w.h.cut(w.file.Snapshot(), w.session, place{{0, -1}}, 10)
			if err := errors.Join(w.h.err(), w.im.Close()); err != nil {
				t.Fatal(err)
			}
		})
	}
}
