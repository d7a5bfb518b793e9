package fuseloop

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	w "github.com/csi-vhdx/csi-driver-vhdx/internal/fusewire"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev/devtest"
)

// What is a proof of a hang, and what is none, without a kernel: each sight is
// what one look finds, a row is looked at over and over.
func TestWatch(t *testing.T) {
	type row struct {
		name string
		next func(s sight, i int) sight
		want string // "": never
	}
	base := sight{rounds: 9, taken: 5, queue: pack(0, 1, true), state: 'S'}
	rows := []row{
		{"idle, comes round", func(s sight, i int) sight { s.rounds += 2 * uint64(i); return s }, ""},
		{"no wake-up from the ring", func(s sight, _ int) sight { return s }, "waits in the kernel and"},
		{"a lock", func(s sight, _ int) sight { s.rounds++; return s }, "is in the program and"},
		{"submits to storage that hangs", func(s sight, _ int) sight { s.state = 'D'; return s }, ""},
		{"storage hangs now and then", func(s sight, i int) sight {
			if i%4 == 0 {
				s.state = 'D'
			}
			return s
		}, ""},
		{"stopped", func(s sight, _ int) sight { s.state = 'T'; return s }, ""},
		{"not to be seen", func(s sight, _ int) sight { s.state = 0; return s }, ""},
		{"spins", func(s sight, i int) sight { s.rounds++; s.state, s.ticks = 'R', uint64(90*i); return s }, "in state R"},
		{"gets no processor", func(s sight, i int) sight { s.rounds++; s.state, s.ticks = 'R', uint64(i); return s }, ""},
		{"the kernel spins", func(s sight, i int) sight { s.state, s.ticks = 'R', uint64(90*i); return s }, ""},
		{"slow requests wait", func(s sight, i int) sight { s.rounds += 2 * uint64(i); s.queue = pack(3, 4, true); return s }, ""},
		{"parked behind nothing", func(s sight, i int) sight { s.rounds += 2 * uint64(i); s.queue = pack(3, 0, true); return s }, "behind nothing"},
		{"parked, others come", func(s sight, i int) sight {
			s.rounds += 2 * uint64(i)
			s.taken += uint64(i)
			s.queue = pack(3, 0, true)
			return s
		}, ""},
		{"unread", func(s sight, i int) sight { s.rounds += 2 * uint64(i); s.unread = true; return s }, "not read"},
		{"unread, and no room", func(s sight, i int) sight {
			s.rounds += 2 * uint64(i)
			s.unread, s.queue = true, pack(0, 128, false)
			return s
		}, ""},
		{"busy", func(s sight, i int) sight { s.rounds += uint64(i); s.taken += uint64(i); s.unread = true; return s }, ""},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			var wt watch
			var got error
			now := time.Unix(1000, 0)
			for i := range 60 {
				s := r.next(base, i)
				s.at = now.Add(time.Duration(i) * time.Second)
				if err := wt.look(s); err != nil {
					if i < hangLooks-1 || i < int(hangTime/time.Second) {
						t.Fatalf("a verdict after %d looks: %v", i+1, err)
					}
					got = err
				}
			}
			if (got == nil) != (r.want == "") || got != nil && !strings.Contains(got.Error(), r.want) {
				t.Fatalf("verdict %v, want %q", got, r.want)
			}
		})
	}
}

// Storage that does not answer is told once, and so is its return.
func TestWatchTellsOfStorage(t *testing.T) {
	var wt watch
	var said []string
	now := time.Unix(1000, 0)
	for i := range 300 {
		s := sight{done: 7, queue: pack(0, 3, true), at: now.Add(time.Duration(i) * time.Second)}
		switch {
		case i >= 200 && i < 210: // one was carried out, and then hangs another
			s.done = 8
		case i >= 210:
			s.done, s.queue = 11, pack(0, 0, true)
		}
		if text := wt.stalls(s); text != "" {
			said = append(said, fmt.Sprint(i, ": ", text))
		}
	}
	want := []string{
		"60: none of 3 requests has been carried out for 1m0s: the storage hangs or is full; they wait",
		"200: requests are carried out again",
	}
	if d := cmp.Diff(want, said); d != "" {
		t.Fatal(d)
	}
}

// A process that was stopped for an hour has not hung: few looks prove nothing.
func TestWatchAfterAStop(t *testing.T) {
	var wt watch
	s := sight{rounds: 9, state: 'S', at: time.Unix(1000, 0)}
	for i := range hangLooks - 1 {
		if i == 1 {
			s.at = s.at.Add(time.Hour)
		}
		if err := wt.look(s); err != nil {
			t.Fatal(err)
		}
	}
}

// oddImage misbehaves as its fields say.
type oddImage struct {
	quietImage
	size func() // called by Size
	read func() // called by ReadAt
	fd   int    // what Pin's payload goes to; -1: none
}

func (im *oddImage) Size() int64 {
	if im.size != nil {
		im.size()
	}
	return 1 << 20
}

func (im *oddImage) ReadAt(p []byte, _ int64) (int, error) {
	if im.read != nil {
		im.read()
	}
	return len(p), nil
}
func (im *oddImage) Pin(_ bool, off, _ int64) (int64, uint32, bool) { return off, 0, im.fd >= 0 }
func (*oddImage) Unpin(uint32)                                      {}
func (im *oddImage) Descriptor() (int, int)                         { return im.fd, 1 }

// judge looks at a real engine as Alive does, with a clock of its own.
func judge(t *testing.T, e *engine) error {
	t.Helper()
	var wt watch
	var err error
	now := time.Unix(1000, 0)
	for range 2 * hangLooks {
		time.Sleep(20 * time.Millisecond) // for the thread to come round
		s := e.see(now)
		now = now.Add(hangTime / 2)
		err = wt.look(s)
	}
	return err
}

// The same on real engines: what the program does wrong is found, what the
// storage does is not.
func TestHangsOfRealEngines(t *testing.T) {
	for _, noRing := range []bool{false, true} {
		t.Run("idle", func(t *testing.T) {
			k := newKernel(t, &oddImage{fd: -1}, 8, noRing)
			if err := judge(t, k.engine); err != nil {
				t.Fatal(err)
			}
		})
		t.Run("lock", func(t *testing.T) {
			gate := make(chan struct{})
			k := newKernel(t, &oddImage{fd: -1, size: func() { <-gate }}, 8, noRing)
			k.send(w.OpGetattr, make([]byte, 16), nil)
			err := judge(t, k.engine)
			close(gate)
			if err == nil || !strings.Contains(err.Error(), "is in the program and") {
				t.Fatalf("got %v", err)
			}
			k.reply()
			if err := judge(t, k.engine); err != nil {
				t.Fatalf("after it went on: %v", err)
			}
		})
		t.Run("slow read", func(t *testing.T) {
			gate := make(chan struct{})
			k := newKernel(t, &oddImage{fd: -1, read: func() { <-gate }}, 4, noRing)
			for range 8 { // more than there is room for
				k.send(w.OpRead, rw(0, 4096), nil)
			}
			err := judge(t, k.engine)
			close(gate)
			if err != nil {
				t.Fatal(err)
			}
			for range 8 {
				k.reply()
			}
		})
	}
	t.Run("payload under way", func(t *testing.T) {
		var pipe [2]int
		if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(pipe[0]) })
		k := newKernel(t, &oddImage{fd: pipe[0]}, 4, false)
		k.send(w.OpRead, rw(0, 4096), nil)
		err := judge(t, k.engine)
		_ = unix.Close(pipe[1])
		if err != nil {
			t.Fatal(err)
		}
		k.reply()
	})
}

func TestThreadState(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if state, _ := threadState(unix.Gettid()); state != 'R' {
		t.Fatalf("this thread is in state %q", state)
	}
	if state, _ := threadState(0); state != 0 {
		t.Fatalf("no thread is in state %q", state)
	}
}

// A device that serves is alive, also to many who ask, and one that has ended
// too: Done says that.
func TestAlive(t *testing.T) {
	needRoot(t)
	d, err := New(Options{}).Attach(t.Context(), blockdev.Config{ID: t.Name(), Image: devtest.NewMemImage(8<<20, 512)})
	if err != nil {
		t.Fatal(err)
	}
	watched := d.(blockdev.Watched)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 50 {
				if err := watched.Alive(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := d.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := watched.Alive(); err != nil {
		t.Fatal(err)
	}
}

// crashVariable says how the image of a server in these tests panics.
const crashVariable = "FUSELOOP_TEST_CRASH"

// crashServer serves an image that panics when it is read.
func crashServer(id, how string) {
	a := New(Options{Crashing: func(id string) { _, _ = os.Stdout.WriteString("accused " + id + "\n") }})
	im := &oddImage{fd: -1}
	crash := func() {
		if how == "fault" {
			b, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANON)
			if err != nil {
				panic(err)
			}
			b[0] = 1 // read-only
		}
		panic("this image is mad")
	}
	s := newSession(-1, "file", 4, im)
	s.crashing = func() { a.o.Crashing(id) }
	if how == "engine" {
		s.crashes(crash)
	}
	im.read = crash
	p := newSlowPool(s, []request{{op: w.OpRead, n: 512, buf: make([]byte, dataAt+4096)}}, nil, false)
	p.submit(0, w.OpRead)
	select {}
}

// A panic names its volume, and is still the end of the process, with the
// trace of where it began.
func TestCrashIsAccused(t *testing.T) {
	for _, how := range []string{"engine", "slow", "fault"} {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), serveVariable+"=vol-1", crashVariable+"="+how)
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != 2 {
			t.Fatalf("%s: the process did not die of its panic: %v\n%s", how, err, out)
		}
		if !strings.HasPrefix(string(out), "accused vol-1\n") || !strings.Contains(string(out), "crashServer") {
			t.Errorf("%s: %s", how, out)
		}
	}
}
