package vhdx_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

func newRing(t *testing.T, mem []byte) *vhdx.Ring {
	t.Helper()
	r, err := vhdx.NewRing(mem)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRingKeepsRecords(t *testing.T) {
	mem := make([]byte, vhdx.MinRingSize)
	r := newRing(t, mem)
	present, next := [16]byte{1}, [16]byte{2}
	if err := r.Announce(present, next); err != nil {
		t.Fatal(err)
	}
	var kept []vhdx.JournalRecord
	seq := uint64(0)
	for {
		rec := vhdx.JournalRecord{Seq: seq + 1, Kind: vhdx.JournalMapped, Entry: seq * 3, Value: seq << 20}
		err := r.Record(rec)
		if errors.Is(err, vhdx.ErrJournalFull) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		seq++
		kept = append(kept, rec)
	}
	check := func() {
		t.Helper()
		got, err := newRing(t, mem).Pending()
		if err != nil {
			t.Fatal(err)
		}
		want := vhdx.JournalState{Active: true, FileWriteGUIDs: [2][16]byte{present, next}, LastSeq: seq, Records: kept}
		if d := cmp.Diff(want, got); d != "" {
			t.Fatal(d)
		}
	}
	check()
	r.Dropped(40)
	kept = kept[40:]
	check()
	for range 30 { // around the end
		seq++
		rec := vhdx.JournalRecord{Seq: seq, Kind: vhdx.JournalMapped, Entry: seq}
		if err := r.Record(rec); err != nil {
			t.Fatal(err)
		}
		kept = append(kept, rec)
	}
	check()
	if err := r.Record(vhdx.JournalRecord{Seq: seq + 2}); !errors.Is(err, vhdx.ErrInvalid) {
		t.Fatalf("a number left out: %v", err)
	}
	if err := r.Reset(); err != nil {
		t.Fatal(err)
	}
	if got, err := newRing(t, mem).Pending(); err != nil || !got.Active || got.Records != nil {
		t.Fatalf("after a reset: %+v, %v", got, err)
	}
}

// A record or head that was being written when the process died counts as not
// written, never as something else.
func TestRingTornWritesDoNotCount(t *testing.T) {
	mem := make([]byte, vhdx.MinRingSize)
	r := newRing(t, mem)
	if err := r.Announce([16]byte{1}, [16]byte{2}); err != nil {
		t.Fatal(err)
	}
	if err := r.Record(vhdx.JournalRecord{Seq: 1, Kind: vhdx.JournalMapped, Entry: 7, Value: 9}); err != nil {
		t.Fatal(err)
	}
	before := bytes.Clone(mem)
	want, _ := newRing(t, before).Pending()
	if err := r.Announce([16]byte{3}, [16]byte{4}); err != nil {
		t.Fatal(err)
	}
	if err := r.Record(vhdx.JournalRecord{Seq: 2, Kind: vhdx.JournalMapped, Entry: 8, Value: 10}); err != nil {
		t.Fatal(err)
	}
	after, _ := newRing(t, mem).Pending()
	var changed []int
	for i := range mem {
		if mem[i] != before[i] {
			changed = append(changed, i)
		}
	}
	for missing := range changed {
		torn := bytes.Clone(mem)
		torn[changed[missing]] = before[changed[missing]]
		got, err := newRing(t, torn).Pending()
		if err != nil {
			t.Fatal(err)
		}
		headOld, recordOld := got.FileWriteGUIDs == want.FileWriteGUIDs, len(got.Records) == 1
		headNew, recordNew := got.FileWriteGUIDs == after.FileWriteGUIDs, len(got.Records) == 2
		if headOld == headNew || recordOld == recordNew || !headOld && !recordOld {
			t.Fatalf("byte %d missing: %+v", changed[missing], got)
		}
	}
}

func FuzzRing(f *testing.F) {
	f.Add([]byte("vhdxring\x01\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		mem := make([]byte, vhdx.MinRingSize)
		copy(mem, b)
		if r, err := vhdx.NewRing(mem); err == nil {
			if _, err := r.Pending(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// The server dies, the page cache lives: what was answered is there.
func TestJournalKeepsAnsweredWrites(t *testing.T) {
	mem := make([]byte, vhdx.MinRingSize)
	f := vhdxtest.NewFile("disk.vhdx")
	if _, err := vhdx.CreateOn(f, vhdx.CreateOptions{Size: 64 * mib, BlockSize: mib}); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 64*mib)
	for life := range 5 {
		f = f.Clone()
		im, err := vhdx.Open(f, vhdx.OpenOptions{Journal: newRing(t, mem), GrowthStep: 4 * mib})
		if err != nil {
			t.Fatalf("life %d: %v", life, err)
		}
		verify(t, im, want)
		for i := range 10 {
			off := int64(life*10+i) * mib
			p := bytes.Repeat([]byte{byte(life*10 + i + 1)}, 4096)
			if _, err := im.WriteAt(p, off); err != nil {
				t.Fatal(err)
			}
			copy(want[off:], p)
			if i == 4 && life%2 == 0 {
				if err := im.Flush(); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	lost, err := vhdx.Open(f.Clone(), vhdx.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if _, err := lost.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(got, want) {
		t.Fatal("without the journal nothing is lost either: this test proves nothing")
	}
	f = f.Clone()
	im, err := vhdx.Open(f, vhdx.OpenOptions{Journal: newRing(t, mem)})
	if err != nil {
		t.Fatal(err)
	}
	verify(t, im, want)
	closeImage(t, im)
	if s, err := newRing(t, mem).Pending(); err != nil || !s.Active || len(s.Records) > 0 {
		t.Fatalf("after a clean close: %+v, %v", s, err)
	}
}

// I-JRN-3
func TestJournalOfAnImageSomebodyElseOpened(t *testing.T) {
	mem := make([]byte, vhdx.MinRingSize)
	f := vhdxtest.NewFile("disk.vhdx")
	if _, err := vhdx.CreateOn(f, vhdx.CreateOptions{Size: 64 * mib, BlockSize: mib}); err != nil {
		t.Fatal(err)
	}
	im, err := vhdx.Open(f, vhdx.OpenOptions{Journal: newRing(t, mem)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := im.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	stolen := f.Clone()
	other, err := vhdx.Open(stolen, vhdx.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := vhdx.Open(stolen.Clone(), vhdx.OpenOptions{Journal: newRing(t, mem)}); !errors.Is(err, vhdx.ErrTakenOver) {
		t.Fatalf("got %v", err)
	}
}

func TestPoisonSurvivesTheProcess(t *testing.T) {
	mem := make([]byte, vhdx.MinRingSize)
	f := vhdxtest.NewFile("disk.vhdx")
	if _, err := vhdx.CreateOn(f, vhdx.CreateOptions{Size: 64 * mib, BlockSize: mib}); err != nil {
		t.Fatal(err)
	}
	im, err := vhdx.Open(f, vhdx.OpenOptions{Journal: newRing(t, mem)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := im.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("medium error")
	f.Inject(vhdxtest.Fault{Kind: vhdxtest.Sync, N: 1, Err: broken})
	if err := im.Flush(); !errors.Is(err, broken) || !errors.Is(err, vhdx.ErrPoisoned) {
		t.Fatalf("flush: %v", err)
	}
	next, err := vhdx.Open(f.Clone(), vhdx.OpenOptions{Journal: newRing(t, mem)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := next.WriteAt(make([]byte, 4096), 0); !errors.Is(err, vhdx.ErrPoisoned) {
		t.Fatalf("write after the restart: %v", err)
	}
	if _, err := next.ReadAt(make([]byte, 4096), 0); err != nil {
		t.Fatalf("read after the restart: %v", err)
	}
}
