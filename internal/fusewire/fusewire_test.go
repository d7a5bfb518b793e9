package fusewire_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	w "github.com/csi-vhdx/csi-driver-vhdx/internal/fusewire"
)

// I-FUSE-2
func TestRoundTrip(t *testing.T) {
	b := make([]byte, 4096)
	h := w.InHeader{Opcode: w.OpWrite, Unique: w.UniqueResend | 5, NodeID: 2, UID: 3, GID: 4, PID: 6, ExtLen: 7}
	n := h.Put(b, 100)
	got, err := w.DecodeInHeader(b[:n+100])
	h.Len = 140
	if diff := cmp.Diff(h, got); diff != "" || err != nil {
		t.Fatalf("in_header: %v\n%s", err, diff)
	}
	r := w.ReadIn{Offset: 1 << 45, Size: 1 << 20}
	gotR, err := w.DecodeReadIn(b[:r.Put(b)])
	if diff := cmp.Diff(r, gotR); diff != "" || err != nil {
		t.Fatalf("read_in: %v\n%s", err, diff)
	}
	f := w.FallocateIn{Offset: 1 << 45, Length: 1 << 40, Mode: w.FallocPunchHole}
	gotF, err := w.DecodeFallocateIn(b[:f.Put(b)])
	if diff := cmp.Diff(f, gotF); diff != "" || err != nil {
		t.Fatalf("fallocate_in: %v\n%s", err, diff)
	}
	i := w.InitIn{Major: 7, Minor: 45, MaxReadahead: 131072, Flags: w.HasResend | w.InitExt | w.AsyncDIO}
	gotI, err := w.DecodeInitIn(b[:i.Put(b)])
	if diff := cmp.Diff(i, gotI); diff != "" || err != nil {
		t.Fatalf("init_in: %v\n%s", err, diff)
	}
	i.Flags &= 1<<32 - 1
	if gotI, err = w.DecodeInitIn(b[:16]); err != nil || gotI != i {
		t.Fatalf("old init_in: %+v, %v", gotI, err)
	}
	o := w.InitOut{Minor: 38, MaxReadahead: 1, Flags: w.MaxPages | w.HasResend, MaxBackground: 160, CongestionThreshold: 120, MaxWrite: 1 << 20, MaxPages: 256}
	gotO, err := w.DecodeInitOut(b[:o.Put(b)])
	if diff := cmp.Diff(o, gotO); diff != "" || err != nil {
		t.Fatalf("init_out: %v\n%s", err, diff)
	}
}

// The bytes as the kernel's header lays them out, on a little-endian host.
func TestKnownBytes(t *testing.T) {
	if hostIsBig() {
		t.Skip("the bytes below are those of a little-endian host")
	}
	b := make([]byte, 64)
	w.PutOutHeader(b, 0x8000000000000102, 5, 4096)
	want := []byte{0x10, 0x10, 0, 0, 0xfb, 0xff, 0xff, 0xff, 2, 1, 0, 0, 0, 0, 0, 0x80}
	if diff := cmp.Diff(want, b[:w.SizeOutHeader]); diff != "" {
		t.Fatalf("out_header:\n%s", diff)
	}
	n := w.PutNotifyResend(b)
	want = []byte{0x10, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	if diff := cmp.Diff(want, b[:n]); diff != "" {
		t.Fatalf("NOTIFY_RESEND:\n%s", diff)
	}
	n = w.PutNotifyInvalInode(b, 2)
	want = []byte{
		40, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
		2, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0,
	}
	if diff := cmp.Diff(want, b[:n]); diff != "" {
		t.Fatalf("NOTIFY_INVAL_INODE:\n%s", diff)
	}
}

func hostIsBig() bool {
	b := make([]byte, w.SizeOutHeader)
	w.PutOutHeader(b, 1, 0, 0)
	return b[8] == 0
}

// I-FUSE-1
func TestShort(t *testing.T) {
	long := make([]byte, 4096)
	for n := range w.SizeInHeader {
		if _, err := w.DecodeInHeader(long[:n]); !errors.Is(err, w.ErrShort) {
			t.Fatalf("in_header of %d bytes: %v", n, err)
		}
	}
	w.InHeader{}.Put(long, 8)
	if _, err := w.DecodeInHeader(long[:w.SizeInHeader+7]); !errors.Is(err, w.ErrShort) {
		t.Fatalf("a message shorter than it says: %v", err)
	}
	if _, err := w.DecodeReadIn(long[:39]); !errors.Is(err, w.ErrShort) {
		t.Fatal(err)
	}
	if _, err := w.DecodeFallocateIn(long[:31]); !errors.Is(err, w.ErrShort) {
		t.Fatal(err)
	}
	if _, err := w.DecodeInitIn(long[:15]); !errors.Is(err, w.ErrShort) {
		t.Fatal(err)
	}
	if _, err := w.DecodeName([]byte("disk")); !errors.Is(err, w.ErrShort) {
		t.Fatal(err)
	}
}

func FuzzDecode(f *testing.F) {
	b := make([]byte, 256)
	n := w.InHeader{Opcode: w.OpRead, Unique: 9, NodeID: 2}.Put(b, w.SizeReadIn)
	n += w.ReadIn{Offset: 4096, Size: 512}.Put(b[n:])
	f.Add(bytes.Clone(b[:n]))
	f.Add([]byte("disk\x00"))
	f.Fuzz(func(t *testing.T, msg []byte) {
		if h, err := w.DecodeInHeader(msg); err == nil {
			out := make([]byte, len(msg))
			h.Put(out, len(msg)-w.SizeInHeader)
			back, err := w.DecodeInHeader(append(out[:w.SizeInHeader], msg[w.SizeInHeader:]...))
			if err != nil || back != h {
				t.Fatalf("%+v became %+v, %v", h, back, err)
			}
		}
		_, _ = w.DecodeReadIn(msg)
		_, _ = w.DecodeFallocateIn(msg)
		_, _ = w.DecodeInitIn(msg)
		_, _ = w.DecodeInitOut(msg)
		_, _ = w.DecodeOutHeader(msg)
		if name, err := w.DecodeName(msg); err == nil && len(name) >= len(msg) {
			t.Fatalf("name %q of %d bytes", name, len(msg))
		}
	})
}

// I-DEV-6: what is done for each request allocates nothing.
func TestNoAllocation(t *testing.T) {
	b := make([]byte, 256)
	n := w.InHeader{Opcode: w.OpRead, Unique: 9, NodeID: 2}.Put(b, w.SizeReadIn)
	n += w.ReadIn{Offset: 4096, Size: 512}.Put(b[n:])
	out := make([]byte, 256)
	if a := testing.AllocsPerRun(100, func() {
		h, _ := w.DecodeInHeader(b[:n])
		r, _ := w.DecodeReadIn(b[w.SizeInHeader:n])
		w.PutOutHeader(out, h.Unique, 0, int(r.Size))
		w.PutAttrOut(out, w.Attr{Ino: 2})
	}); a != 0 {
		t.Fatalf("%v allocations per request", a)
	}
}
