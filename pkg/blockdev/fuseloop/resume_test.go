package fuseloop

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev/devtest"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

const (
	lifeVariable = "FUSELOOP_TEST_LIFE" // the image's path: serve it, on descriptors left by the last life
	// There was a life before: what it gave to Keep, in hex. Its connection is descriptor 5.
	againVariable = "FUSELOOP_TEST_AGAIN"
	// What to do when the share is full: "pause", or nothing.
	fullVariable = "FUSELOOP_TEST_FULL"
	ringSize     = 1 << 20
)

// serveLife is one life of a server: descriptor 3 is the memory of the volatile
// journal, 4 a socket to the test, 5 the connection if there has been a life before.
func serveLife(id, path string) {
	err := func() error {
		mem, err := unix.Mmap(3, 0, ringSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return err
		}
		ring, err := vhdx.NewRing(mem)
		if err != nil {
			return err
		}
		var im *vhdx.Image
		for {
			im, err = vhdx.OpenPath(path, vhdx.OpenOptions{Journal: ring})
			if !errors.Is(err, vhdx.ErrInUse) { // the I/O of the last life is still under way
				break
			}
			time.Sleep(time.Millisecond)
		}
		if err != nil {
			return err
		}
		c := blockdev.Config{ID: id, Image: im, Pause: os.Getenv(fullVariable) == "pause", Keep: func(meta []byte, files ...*os.File) error {
			return unix.Sendmsg(4, meta, unix.UnixRights(int(files[0].Fd())), nil, 0)
		}}
		a, ctx := New(Options{}), context.Background()
		var d blockdev.Device
		if meta, _ := hex.DecodeString(os.Getenv(againVariable)); len(meta) > 0 {
			d, err = a.Resume(ctx, c, meta, []*os.File{os.NewFile(5, "fuse")})
		} else {
			d, err = a.Attach(ctx, c)
		}
		if err != nil {
			return err
		}
		fmt.Println(d.Path())
		obey(d) // until the end of the test, or of this life
		if err := d.Detach(ctx); err != nil {
			return err
		}
		return im.Close()
	}()
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

// obey does what single bytes on the input say, until its end.
func obey(d blockdev.Device) {
	b := make([]byte, 1)
	for {
		if n, _ := os.Stdin.Read(b); n == 0 {
			return
		}
		switch b[0] {
		case 'p':
			fmt.Println(d.(blockdev.Pauser).Paused().Waiting)
		case 'd':
			fmt.Println(d.Detach(context.Background()))
		}
	}
}

// lives starts servers of one device, one after the other.
type lives struct {
	t       *testing.T
	id      string
	image   string
	journal *os.File
	fuse    *os.File
	meta    []byte
	full    string // what fullVariable says

	in  io.Writer // of the present server
	out io.Reader
}

// ask has the present server obey and gives its answer.
func (l *lives) ask(what byte) string {
	l.t.Helper()
	if _, err := l.in.Write([]byte{what}); err != nil {
		l.t.Fatal(err)
	}
	line := make([]byte, 4096)
	n, err := l.out.Read(line)
	if err != nil {
		l.t.Fatal(err)
	}
	return strings.TrimSpace(string(line[:n]))
}

func newLives(t *testing.T, image string) *lives {
	t.Helper()
	memfd, err := unix.MemfdCreate("journal", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	journal := os.NewFile(uintptr(memfd), "journal")
	t.Cleanup(func() { _ = journal.Close() })
	if err := journal.Truncate(ringSize); err != nil {
		t.Fatal(err)
	}
	l := &lives{t: t, id: fmt.Sprintf("%s-%d", t.Name(), os.Getpid()), image: image, journal: journal}
	t.Cleanup(func() {
		if l.fuse != nil {
			_ = l.fuse.Close() // the last copy, once the server is gone
		}
		if err := New(Options{}).Teardown(context.Background(), l.id); err != nil && !t.Failed() {
			t.Error(err)
		}
	})
	return l
}

func (l *lives) start() (cmd *exec.Cmd, dev string, end func() error) {
	l.t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		l.t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "socket")
	defer unix.Close(pair[0])
	cmd = exec.Command("/proc/self/exe")
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), serveVariable+"="+l.id, lifeVariable+"="+l.image, fullVariable+"="+l.full)
	cmd.ExtraFiles = []*os.File{l.journal, theirs}
	if l.fuse != nil {
		cmd.ExtraFiles = append(cmd.ExtraFiles, l.fuse)
		cmd.Env = append(cmd.Env, againVariable+"="+hex.EncodeToString(l.meta))
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.in, l.out = stdin, out
	_ = theirs.Close()
	l.t.Cleanup(func() { _ = cmd.Process.Kill() })
	if l.fuse == nil {
		l.fuse, l.meta = l.receive(pair[0])
	}
	line := make([]byte, 4096)
	n, _ := out.Read(line)
	dev = strings.TrimSpace(string(line[:n]))
	if !strings.HasPrefix(dev, "/dev/") {
		l.t.Fatalf("server: %s", dev)
	}
	return cmd, dev, func() error {
		_ = stdin.Close()
		rest := make([]byte, 4096)
		n, _ := out.Read(rest)
		if err := cmd.Wait(); err != nil {
			return fmt.Errorf("%w: %s", err, rest[:n])
		}
		return nil
	}
}

func (l *lives) receive(socket int) (*os.File, []byte) {
	l.t.Helper()
	oob := make([]byte, unix.CmsgSpace(4))
	meta := make([]byte, blockdev.MaxMeta)
	have, n, _, _, err := unix.Recvmsg(socket, meta, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		l.t.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		l.t.Fatalf("%d messages, %v", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		l.t.Fatalf("%v, %v", fds, err)
	}
	return os.NewFile(uintptr(fds[0]), "fuse"), meta[:have]
}

// kill -9 of the server again and again, while new blocks are written through
// O_DIRECT and nothing is ever flushed: no request fails and what was answered
// is there, each time.
func TestServerDiesUnderLoad(t *testing.T) {
	kills := 20
	if testing.Short() {
		kills = 4
	}
	image := filepath.Join(t.TempDir(), "disk.vhdx")
	if _, err := vhdx.Create(image, vhdx.CreateOptions{Size: 8 << 30, BlockSize: 1 << 20, LogicalSectorSize: 512}); err != nil {
		t.Fatal(err)
	}
	l := newLives(t, image)
	server, dev, end := l.start()
	f, err := os.OpenFile(dev, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	const writers = 4
	var done [writers]atomic.Int64 // blocks written and answered
	var stop atomic.Bool
	var wg sync.WaitGroup
	errs := make(chan error, writers)
	for w := range int64(writers) {
		wg.Go(func() {
			p := alignedPage()
			for n := int64(0); !stop.Load() && n < 2000; n++ {
				block := n*writers + w
				stampPage(p, block)
				if _, err := f.WriteAt(p, block<<20+4096*(block%200)); err != nil {
					errs <- fmt.Errorf("block %d: %w", block, err)
					return
				}
				done[w].Store(n + 1)
			}
		})
	}
	check := func(last int64) {
		got, want := alignedPage(), alignedPage()
		for w := range int64(writers) {
			answered := done[w].Load()
			for n := max(0, answered-last); n < answered; n++ {
				block := n*writers + w
				if _, err := f.ReadAt(got, block<<20+4096*(block%200)); err != nil {
					t.Fatalf("read block %d: %v", block, err)
				}
				if stampPage(want, block); !bytes.Equal(got, want) {
					t.Fatalf("block %d, answered before the server died, is lost", block)
				}
			}
		}
	}
	for range kills {
		time.Sleep(30 * time.Millisecond)
		if err := server.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		go func(c *exec.Cmd) { _ = c.Wait() }(server) // which may take as long as its I/O
		server, _, end = l.start()
		check(50)
	}
	stop.Store(true)
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Fatal(err)
	}
	check(2000)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := end(); err != nil {
		t.Fatalf("detach and close: %v", err)
	}
	if out, err := exec.Command("qemu-img", "check", image).CombinedOutput(); err != nil && !errors.Is(err, exec.ErrNotFound) {
		t.Fatalf("qemu-img check: %v\n%s", err, out)
	}
}

func alignedPage() []byte {
	b, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		panic(err)
	}
	return b
}

func stampPage(p []byte, block int64) {
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], uint64(block)<<20|uint64(i)+1)
	}
}

// dup copies a descriptor as a keeper would have it.
func dup(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// A device that another version made, with requests smaller or larger than this
// one's, is served as it was made.
func TestResumeOtherSizes(t *testing.T) {
	needRoot(t)
	for _, size := range []uint32{4096, 64 << 10, mostIO} {
		for _, noRing := range []bool{false, true} {
			im := devtest.NewMemImage(16<<20, 512)
			var meta []byte
			var held *os.File
			c := blockdev.Config{ID: fmt.Sprint(t.Name(), os.Getpid()), Image: im, Keep: func(m []byte, files ...*os.File) (err error) {
				meta = m
				held, err = dup(files[0])
				return err
			}}
			d, err := New(Options{maxIO: size}).Attach(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			if err := d.(blockdev.Releaser).Release(t.Context()); err != nil {
				t.Fatal(err)
			}
			d, err = New(Options{NoRing: noRing}).Resume(t.Context(), c, meta, []*os.File{held})
			if err != nil {
				t.Fatal(err)
			}
			im.Record()
			for _, args := range [][]string{
				{"if=/dev/urandom", "of=" + d.Path(), "bs=4M", "count=4", "oflag=direct"},
				{"if=" + d.Path(), "of=/dev/null", "bs=4M", "count=4", "iflag=direct"},
			} {
				if out, err := exec.Command("dd", append(args, "iflag=fullblock")...).CombinedOutput(); err != nil {
					t.Fatalf("%v: %v: %s", args, err, out)
				}
			}
			most := map[string]int64{}
			for _, op := range im.Recorded() {
				most[op.Kind] = max(most[op.Kind], op.N)
			}
			// The kernel cuts requests of much memory smaller still.
			if least := min(int64(size), maxIO+1); most["read"] < least || most["write"] < least || max(most["read"], most["write"]) > int64(size) {
				t.Errorf("made with requests of %d bytes, served with %v", size, most)
			}
			out, err := exec.Command("sha256sum", d.Path()).Output()
			if err != nil {
				t.Fatal(err)
			}
			data := make([]byte, im.Size())
			if _, err := im.ReadAt(data, 0); err != nil {
				t.Fatal(err)
			}
			if want := fmt.Sprintf("%x ", sha256.Sum256(data)); !strings.HasPrefix(string(out), want) {
				t.Errorf("with requests of %d bytes the device is not what the image is", size)
			}
			if err := d.Detach(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
}
