package fuseloop

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	w "github.com/csi-vhdx/csi-driver-vhdx/internal/fusewire"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev/devtest"
)

// kernel plays the kernel's part on the other end of a socket that keeps
// message boundaries, as /dev/fuse does.
type kernel struct {
	t    testing.TB
	fd   int
	next uint64
	buf  []byte
	*engine
	end func() error // stops the engine and gives its outcome
}

func newKernel(t testing.TB, im blockdev.Image, depth int, noRing bool) *kernel {
	t.Helper()
	return newKernelWith(t, im, depth, noRing, func(*session) {})
}

func newKernelWith(t testing.TB, im blockdev.Image, depth int, noRing bool, with func(*session)) *kernel {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan *engine, 1)
	ended := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		s := newSession(fds[0], "file", depth, im)
		with(s)
		e, err := newEngine(s, noRing)
		started <- e
		if err == nil {
			err = e.run()
			e.close()
		}
		_ = unix.Close(fds[0])
		ended <- err
	}()
	e := <-started
	if e == nil {
		t.Fatal(<-ended)
	}
	k := &kernel{t: t, fd: fds[1], next: 2, buf: make([]byte, 128<<10), engine: e}
	k.end = sync.OnceValue(func() error {
		e.quit()
		err := <-ended
		_ = unix.Close(fds[1])
		return err
	})
	t.Cleanup(func() { _ = k.end() })
	return k
}

// send sends a request and returns its id.
func (k *kernel) send(op w.Opcode, args, data []byte) uint64 {
	k.t.Helper()
	k.next += 2
	n := w.InHeader{Opcode: op, Unique: k.next, NodeID: fileID}.Put(k.buf, len(args)+len(data))
	n += copy(k.buf[n:], args)
	n += copy(k.buf[n:], data)
	if _, err := unix.Write(k.fd, k.buf[:n]); err != nil {
		k.t.Fatal(err)
	}
	return k.next
}

// reply takes one reply.
func (k *kernel) reply() (h w.OutHeader, body []byte) {
	k.t.Helper()
	n, err := unix.Read(k.fd, k.buf)
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Read(k.fd, k.buf)
	}
	if err != nil {
		k.t.Fatal(err)
	}
	h, err = w.DecodeOutHeader(k.buf[:n])
	if err != nil || int(h.Len) != n {
		k.t.Fatalf("reply of %d bytes says %+v, %v", n, h, err)
	}
	return h, k.buf[w.SizeOutHeader:n]
}

func rw(off int64, n int) []byte {
	b := make([]byte, w.SizeReadIn)
	w.ReadIn{Offset: uint64(off), Size: uint32(n)}.Put(b)
	return b
}

func rawFile(t testing.TB, size int64, align int) *devtest.FileImage {
	t.Helper()
	im, err := devtest.NewFileImage(filepath.Join(t.TempDir(), "raw"), size, 512, align)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := im.Close(); err != nil {
			t.Error(err)
		}
	})
	return im
}

// I-FL-2: every id comes back once, the mark of a re-sent request included.
func TestEveryRequestIsAnsweredOnce(t *testing.T) {
	for _, noRing := range []bool{false, true} {
		k := newKernel(t, rawFile(t, 1<<20, 512), 8, noRing)
		k.next |= w.UniqueResend
		want := map[uint64]bool{}
		data := make([]byte, 4096)
		for i := range int64(100) {
			switch i % 5 {
			case 0:
				want[k.send(w.OpRead, rw(i*4096, 4096), nil)] = true
			case 1:
				want[k.send(w.OpWrite, rw(i*4096, 4096), data)] = true
			case 2:
				want[k.send(w.OpFsync, make([]byte, 16), nil)] = true
			case 3:
				want[k.send(w.OpGetattr, make([]byte, 16), nil)] = true
			case 4:
				k.send(w.OpForget, make([]byte, 8), nil)
				k.send(w.OpInterrupt, make([]byte, 8), nil)
				k.send(w.OpBatchForget, make([]byte, 8), nil)
			}
		}
		for range len(want) {
			h, _ := k.reply()
			if !want[h.Unique] || h.Error != 0 {
				t.Fatalf("reply %+v", h)
			}
			delete(want, h.Unique)
		}
		if err := k.end(); !errors.Is(err, errStopped) {
			t.Fatal(err)
		}
		if n, err := unix.Read(k.fd, k.buf); n > 0 {
			t.Fatalf("one more reply, %d bytes, %v", n, err)
		}
	}
}

// What nobody should ask is refused, and what is malformed ends the
// connection instead of the process.
func TestOddRequests(t *testing.T) {
	for _, noRing := range []bool{false, true} {
		k := newKernel(t, rawFile(t, 1<<20, 512), 8, noRing)
		falloc := func(off, n uint64, mode uint32) []byte {
			b := make([]byte, w.SizeFallocateIn)
			w.FallocateIn{Offset: off, Length: n, Mode: mode}.Put(b)
			return b
		}
		for _, test := range []struct {
			name string
			op   w.Opcode
			args []byte
			data []byte
			want unix.Errno
		}{
			{"negative offset", w.OpRead, rw(-4096, 4096), nil, unix.EINVAL},
			{"too long", w.OpRead, rw(0, maxIO+512), nil, unix.EINVAL},
			{"less data than it says", w.OpWrite, rw(0, 8192), make([]byte, 4096), unix.EINVAL},
			{"write beyond the end", w.OpWrite, rw(1<<20, 4096), make([]byte, 4096), unix.EINVAL},
			{"write over the end", w.OpWrite, rw(1<<20-512, 4096), make([]byte, 4096), unix.EINVAL},
			{"read beyond the end", w.OpRead, rw(1<<20, 4096), nil, 0},
			{"allocate", w.OpFallocate, falloc(0, 4096, 0), nil, unix.EOPNOTSUPP},
			{"odd punch", w.OpFallocate, falloc(1, 4096, w.FallocPunchHole|w.FallocKeepSize), nil, unix.EINVAL},
			{"huge punch", w.OpFallocate, falloc(512, 1<<63-512, w.FallocPunchHole|w.FallocKeepSize), nil, unix.EINVAL},
			{"unknown operation", w.Opcode(4711), nil, nil, unix.ENOSYS},
			{"setattr", w.OpSetattr, make([]byte, 88), nil, unix.EPERM},
			{"lookup of another name", w.OpLookup, []byte("other\x00"), nil, unix.ENOENT},
		} {
			id := k.send(test.op, test.args, test.data)
			h, _ := k.reply()
			if h.Unique != id || h.Error != -int32(test.want) {
				t.Errorf("%s: %+v, want %v", test.name, h, test.want)
			}
		}
		if _, err := unix.Write(k.fd, make([]byte, 20)); err != nil {
			t.Fatal(err)
		}
		if err := k.end(); err == nil || errors.Is(err, errStopped) {
			t.Fatalf("a message cut short: %v", err)
		}
	}
}

// I-DEV-6: nothing is allocated per request, on either way through.
func TestNoAllocationPerRequest(t *testing.T) {
	data := make([]byte, 4096)
	for _, c := range []struct {
		name   string
		pin    bool
		noRing bool
	}{{"ring", true, false}, {"slow", false, false}, {"poll", false, true}} {
		t.Run(c.name, func(t *testing.T) {
			var im blockdev.Image = rawFile(t, 1<<20, 512)
			if !c.pin {
				im = quietImage{}
			}
			k := newKernel(t, im, 8, c.noRing)
			read, write := rw(4096, 4096), rw(8192, 4096)
			sync, attr := make([]byte, 16), make([]byte, 16)
			once := func() {
				k.send(w.OpRead, read, nil)
				k.send(w.OpWrite, write, data)
				k.send(w.OpGetattr, attr, nil)
				for range 3 {
					k.reply()
				}
				if !c.pin {
					k.send(w.OpFsync, sync, nil)
					k.reply()
				}
			}
			if a := testing.AllocsPerRun(500, once); a != 0 && !raceEnabled {
				t.Fatalf("%v allocations per 3 requests", a)
			}
		})
	}
}

// quietImage does nothing and allocates nothing.
type quietImage struct{}

func (quietImage) ReadAt(p []byte, _ int64) (int, error)  { return len(p), nil }
func (quietImage) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
func (quietImage) WriteZeroes(_, _ int64) error           { return nil }
func (quietImage) Discard(_, _ int64) error               { return nil }
func (quietImage) Flush() error                           { return nil }
func (quietImage) Size() int64                            { return 1 << 20 }
func (quietImage) LogicalSectorSize() int                 { return 512 }
func (quietImage) PhysicalSectorSize() int                { return 4096 }
func (quietImage) ReadOnly() bool                         { return false }

// I-FL-3: a whole page is written while the image has read it to change one
// sector of it. The sector may become either; the rest of the page must be
// what was written.
func TestWholeWriteWaitsForNarrowOne(t *testing.T) {
	im := rawFile(t, 64<<10, 4096)
	gate, reached := make(chan struct{}), make(chan struct{}, 8)
	im.Midway(func() { reached <- struct{}{}; <-gate })
	k := newKernel(t, im, 16, false)
	release := sync.OnceFunc(func() { close(gate) })
	t.Cleanup(release) // before the engine is stopped, which waits for all
	narrow := k.send(w.OpWrite, rw(4096+512, 512), bytes.Repeat([]byte{1}, 512))
	<-reached
	k.send(w.OpWrite, rw(0, 12288), bytes.Repeat([]byte{2}, 12288)) // the page, and more
	other := k.send(w.OpWrite, rw(32<<10, 4096), bytes.Repeat([]byte{3}, 4096))
	if h, _ := k.reply(); h.Unique != other || h.Error != 0 {
		t.Fatalf("a write of another page waits: reply %+v", h)
	}
	// A second narrow write, of another unit, is parked behind the whole one.
	k.send(w.OpWrite, rw(8192, 512), bytes.Repeat([]byte{4}, 512))
	release()
	if h, _ := k.reply(); h.Unique != narrow || h.Error != 0 {
		t.Fatalf("the narrow write is not the first to be answered: %+v", h)
	}
	for range 2 {
		if h, _ := k.reply(); h.Error != 0 {
			t.Fatalf("reply %+v", h)
		}
	}
	got := make([]byte, 12288)
	if _, err := im.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte{2}, 12288)
	copy(want[8192:], bytes.Repeat([]byte{4}, 512))
	if !bytes.Equal(got, want) {
		t.Fatal("bytes beside the narrow writes are not what was written")
	}
}

// I-FL-3: many at once. Each round changes single sectors of a page while the
// whole page is written; the sectors that only the whole write covers must be
// the whole write's.
func TestNarrowChangesKeepOrder(t *testing.T) {
	im := rawFile(t, 64<<10, 4096)
	im.Midway(func() { time.Sleep(20 * time.Microsecond) })
	k := newKernel(t, im, 16, false)
	r := rand.New(rand.NewPCG(1, 2))
	got := make([]byte, 4096)
	for round := range 1500 {
		whole := bytes.Repeat([]byte{byte(round) | 1}, 4096)
		page := r.Int64N(4) * 4096
		touched := map[int64]bool{}
		n := 1 + r.IntN(6)
		at := r.IntN(n)
		for i := range n {
			if i == at {
				k.send(w.OpWrite, rw(page, 4096), whole)
			}
			s := r.Int64N(8)
			touched[s] = true
			k.send(w.OpWrite, rw(page+s*512, 512), make([]byte, 512))
		}
		for range n + 1 {
			if h, _ := k.reply(); h.Error != 0 {
				t.Fatalf("reply %+v", h)
			}
		}
		if _, err := im.ReadAt(got, page); err != nil {
			t.Fatal(err)
		}
		for s := range int64(8) {
			if !touched[s] && !bytes.Equal(got[s*512:(s+1)*512], whole[:512]) {
				t.Fatalf("round %d: sector %d lost the write of the whole page", round, s)
			}
		}
	}
}

// A short or failed operation of the ring: the file ends before the size the
// image claims.
func TestShortPayload(t *testing.T) {
	im := rawFile(t, 1<<20, 512)
	k := newKernel(t, im, 8, false)
	fd, _ := im.Descriptor()
	if err := unix.Ftruncate(fd, 512<<10); err != nil {
		t.Fatal(err)
	}
	k.send(w.OpRead, rw(512<<10-512, 4096), nil)
	if h, _ := k.reply(); h.Error != -int32(unix.EIO) {
		t.Fatalf("a read over the end of the file: %+v", h)
	}
	k.send(w.OpRead, rw(0, 4096), nil)
	if h, body := k.reply(); h.Error != 0 || len(body) != 4096 {
		t.Fatalf("a read after it: %+v", h)
	}
}

func BenchmarkAttachDetach(b *testing.B) {
	needRoot(b)
	a := New(Options{})
	im := devtest.NewMemImage(64<<20, 512)
	var attach, detach time.Duration
	for b.Loop() {
		t0 := time.Now()
		d, err := a.Attach(b.Context(), blockdev.Config{ID: fmt.Sprint(b.Name(), os.Getpid()), Image: im})
		if err != nil {
			b.Fatal(err)
		}
		t1 := time.Now()
		if err := d.Detach(b.Context()); err != nil {
			b.Fatal(err)
		}
		attach += t1.Sub(t0)
		detach += time.Since(t1)
	}
	b.ReportMetric(float64(attach.Microseconds())/1000/float64(b.N), "ms/attach")
	b.ReportMetric(float64(detach.Microseconds())/1000/float64(b.N), "ms/detach")
}

// BenchmarkEngine is what a request costs in this process alone, with a
// socket for /dev/fuse.
func BenchmarkEngine(b *testing.B) {
	k := newKernel(b, rawFile(b, 1<<20, 512), 8, false)
	args := make([]byte, 16)
	b.ReportAllocs()
	for b.Loop() {
		k.send(w.OpGetattr, args, nil)
		k.reply()
	}
}
