package fuseloop

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

const mib = int64(1 << 20)

// share is a small filesystem with an image on it, and a file that can be
// removed to make room.
type share struct {
	t     *testing.T
	dir   string
	image string
	spare string
	holes int64 // blocks of which only the first page was written
	total int64 // blocks that fit once spare is gone, and not before
}

func newShare(t *testing.T, fs string) *share {
	t.Helper()
	needRoot(t)
	base := t.TempDir()
	backing, dir := filepath.Join(base, "fs.img"), filepath.Join(base, "mnt")
	err := errors.Join(os.WriteFile(backing, nil, 0o600), os.Truncate(backing, 300*mib), os.Mkdir(dir, 0o700))
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"mkfs." + fs, "-q", backing}, {"mount", "-o", "loop", backing, dir}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	s := &share{t: t, dir: dir, image: filepath.Join(dir, "disk.vhdx"), spare: filepath.Join(dir, "spare"), holes: 8}
	if _, err := vhdx.Create(s.image, vhdx.CreateOptions{Size: 1 << 30, BlockSize: mib}); err != nil {
		t.Fatal(err)
	}
	free := s.free()
	f, err := os.Create(s.spare)
	if err == nil {
		err = errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, free/4), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	s.total = free/mib*7/8 - s.holes
	return s
}

func (s *share) free() int64 {
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		s.t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

// filler writes whole blocks through a device, past the page cache, and knows
// what has been answered.
type filler struct {
	f    *os.File
	next atomic.Int64
	done []atomic.Bool
	wg   sync.WaitGroup
	errs chan error
}

func (s *share) fill(dev string, writers int) *filler {
	s.t.Helper()
	f, err := os.OpenFile(dev, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	x := &filler{f: f, done: make([]atomic.Bool, s.total), errs: make(chan error, writers+int(s.holes))}
	for i := range s.holes {
		if err := x.write(s.total+i, 0, 4096); err != nil {
			s.t.Fatal(err)
		}
	}
	for range writers {
		x.wg.Go(func() {
			for n := x.next.Add(1) - 1; n < s.total; n = x.next.Add(1) - 1 {
				if err := x.write(n, 0, mib); err != nil {
					x.errs <- err
					return
				}
				x.done[n].Store(true)
			}
		})
	}
	return x
}

func alignedBlock() []byte {
	b, err := unix.Mmap(-1, 0, int(mib), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		panic(err)
	}
	return b
}

func stampBlock(p []byte, block, at int64) {
	for i := int64(0); i < int64(len(p)); i += 4096 {
		stampPage(p[i:i+4096], block<<8|(at+i)/4096)
	}
}

func (x *filler) write(block, at, n int64) error {
	p := alignedBlock()
	defer func() { _ = unix.Munmap(p) }()
	stampBlock(p[:n], block, at)
	if _, err := x.f.WriteAt(p[:n], block*mib+at); err != nil {
		return fmt.Errorf("block %d: %w", block, err)
	}
	return nil
}

// verify reads back every step'th block that was answered.
func (x *filler) verify(t *testing.T, step int) (read int) {
	t.Helper()
	got, want := alignedBlock(), make([]byte, mib)
	defer func() { _ = unix.Munmap(got) }()
	for n := 0; n < len(x.done); n += step {
		if !x.done[n].Load() {
			continue
		}
		read++
		if _, err := x.f.ReadAt(got, int64(n)*mib); err != nil {
			t.Fatalf("read block %d: %v", n, err)
		}
		if stampBlock(want, int64(n), 0); !bytes.Equal(got, want) {
			t.Fatalf("block %d is not what was written", n)
		}
	}
	return read
}

func (l *lives) awaitPaused(least int) {
	l.t.Helper()
	n := 0
	for range 3000 {
		n, _ = strconv.Atoi(l.ask('p'))
		if n >= least {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	l.t.Fatalf("%d requests wait for space, want %d", n, least)
}

// The share runs full under writes past every cache: they wait, also those into
// holes of blocks that have a place; reads and flushes do not, the device cannot be
// removed, and the server is killed and taken over in between. When there is
// room again everything is written, and nothing is lost.
func TestFullSharePauses(t *testing.T) {
	for _, fs := range []string{"ext4", "xfs"} {
		if testing.Short() && fs == "ext4" {
			continue
		}
		t.Run(fs, func(t *testing.T) {
			s := newShare(t, fs)
			l := newLives(t, s.image)
			l.full = "pause"
			server, dev, end := l.start()
			const writers = 4
			x := s.fill(dev, writers)
			l.awaitPaused(writers)
			for i := range s.holes {
				x.wg.Go(func() {
					if err := x.write(s.total+i, mib/2, mib/4); err != nil {
						x.errs <- err
					}
				})
			}
			least := writers + int(s.holes) - 1 // some last pages may have been left for one of them
			l.awaitPaused(least)
			for round := range 3 {
				if round > 0 {
					if err := server.Process.Kill(); err != nil {
						t.Fatal(err)
					}
					_ = server.Wait()
					server, _, end = l.start()
					l.awaitPaused(least)
				}
				if n := x.verify(t, 7); n < 10 {
					t.Fatalf("only %d blocks to read", n)
				}
				if err := x.f.Sync(); err != nil {
					t.Fatalf("flush in a pause: %v", err)
				}
				if said := l.ask('d'); !strings.Contains(said, "writes wait for space") {
					t.Fatalf("detach in a pause: %s", said)
				}
			}
			t.Attr("written-before-the-pause", fmt.Sprintf("%d MiB", x.next.Load()-writers))
			began := time.Now()
			if err := os.Remove(s.spare); err != nil {
				t.Fatal(err)
			}
			for l.ask('p') != "0" {
				time.Sleep(5 * time.Millisecond)
			}
			t.Attr("pause-ended-after-room-came", time.Since(began).Round(time.Millisecond).String())
			x.wg.Wait()
			close(x.errs)
			for err := range x.errs {
				t.Fatal(err)
			}
			if n := x.verify(t, 1); n != len(x.done) {
				t.Fatalf("%d of %d blocks were written", n, len(x.done))
			}
			got, want := alignedBlock()[:mib/4], make([]byte, mib/4)
			for i := range s.holes {
				if _, err := x.f.ReadAt(got, (s.total+i)*mib+mib/2); err != nil {
					t.Fatal(err)
				}
				if stampBlock(want, s.total+i, mib/2); !bytes.Equal(got, want) {
					t.Fatalf("the hole of block %d does not hold what was written to it", i)
				}
			}
			s.wellEnded(x, end)
		})
	}
}

func (s *share) wellEnded(x *filler, end func() error) {
	s.t.Helper()
	if err := errors.Join(x.f.Sync(), x.f.Close(), end()); err != nil {
		s.t.Fatalf("flush, detach and close: %v", err)
	}
	if out, err := exec.Command("qemu-img", "check", s.image).CombinedOutput(); err != nil && !errors.Is(err, exec.ErrNotFound) {
		s.t.Fatalf("qemu-img check: %v\n%s", err, out)
	}
}

// Without a pause the guest gets errors, and the image stays well: once there
// is room it takes writes again.
func TestFullShareFails(t *testing.T) {
	for _, fs := range []string{"ext4", "xfs"} {
		if testing.Short() && fs == "xfs" {
			continue
		}
		t.Run(fs, func(t *testing.T) {
			s := newShare(t, fs)
			l := newLives(t, s.image)
			_, dev, end := l.start()
			x := s.fill(dev, 2)
			x.wg.Wait()
			for range 2 {
				if err := <-x.errs; !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EIO) {
					t.Fatalf("a write without space: %v", err)
				}
			}
			x.verify(t, 1)
			if err := x.f.Sync(); err != nil {
				t.Fatalf("flush on a full share: %v", err)
			}
			if err := os.Remove(s.spare); err != nil {
				t.Fatal(err)
			}
			for n := range s.total {
				if x.done[n].Load() {
					continue
				}
				if err := x.write(n, 0, mib); err != nil {
					t.Fatalf("with room again: %v", err)
				}
				x.done[n].Store(true)
			}
			x.verify(t, 1)
			s.wellEnded(x, end)
		})
	}
}
