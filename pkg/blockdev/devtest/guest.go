package devtest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/rpc"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The guest is a process of its own that opens the devices: a test process
// that waits for a device which it serves itself could never be killed, and
// would be there for ever. The guest ends with the test process; what it waits
// for then fails with the connection.
const guestVariable = "DEVTEST_GUEST"

var wired bool

// RunIfGuest is the first call of TestMain in a package that calls [Run].
func RunIfGuest() {
	wired = true
	if os.Getenv(guestVariable) == "" {
		return
	}
	conn, err := net.FileConn(os.NewFile(3, "test"))
	if err == nil {
		server := rpc.NewServer()
		err = server.RegisterName("Guest", &Guest{files: map[int]*os.File{}})
		if err == nil {
			server.ServeConn(conn) // until the test process has ended
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Ask is one request to the guest.
type Ask struct {
	Op     string
	File   int
	Path   string // of open
	Flags  int    // of open; mode of fallocate
	Off, N int64
	Data   []byte
	Req    uint // of ioctl
}

// Answer is what comes back.
type Answer struct {
	File  int
	N     int64
	Data  []byte
	Errno syscall.Errno
	EOF   bool
	Text  string // of an error that is neither
}

// Guest is the receiver of the requests.
type Guest struct {
	mu    sync.Mutex // guards what follows
	files map[int]*os.File
	next  int
}

// Do carries out one request; many at once.
func (g *Guest) Do(q Ask, a *Answer) error {
	g.mu.Lock()
	f := g.files[q.File]
	g.mu.Unlock()
	err := g.do(q, f, a)
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		a.Errno = errno
	} else if errors.Is(err, io.EOF) {
		a.EOF = true
	} else if err != nil {
		a.Text = err.Error()
	}
	return nil
}

func (g *Guest) do(q Ask, f *os.File, a *Answer) (err error) {
	var n int
	switch q.Op {
	case "open":
		if f, err = os.OpenFile(q.Path, q.Flags, 0o600); err == nil {
			g.mu.Lock()
			g.next++
			a.File = g.next
			g.files[a.File] = f
			g.mu.Unlock()
		}
	case "read":
		p := aligned(q.N)
		n, err = f.ReadAt(p, q.Off)
		a.N, a.Data = int64(n), p[:n]
	case "write":
		p := aligned(int64(len(q.Data)))
		copy(p, q.Data)
		n, err = f.WriteAt(p, q.Off)
		a.N = int64(n)
	case "sync":
		err = f.Sync()
	case "close":
		err = f.Close()
	case "get":
		v := new(uint64)
		err = ioctl(f, q.Req, unsafe.Pointer(v))
		a.N = int64(*v)
	case "range":
		err = ioctl(f, q.Req, unsafe.Pointer(&[2]uint64{uint64(q.Off), uint64(q.N)}))
	case "fallocate":
		err = unix.Fallocate(int(f.Fd()), uint32(q.Flags), q.Off, q.N)
	default:
		err = fmt.Errorf("no operation %q", q.Op)
	}
	return err
}

func ioctl(f *os.File, req uint, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(req), uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// file is a file that the guest has open: a device, or one on a mounted device.
type file struct {
	name string
	id   int
	c    *rpc.Client
	cmd  *exec.Cmd
	end  sync.Once
}

// openFile has a guest open a file until the end of the test.
func openFile(t *testing.T, path string, flags int) (*file, error) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "guest"), os.NewFile(uintptr(pair[1]), "test")
	defer func() { _, _ = ours.Close(), theirs.Close() }()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), guestVariable+"=1")
	cmd.Stderr, cmd.ExtraFiles = os.Stderr, []*os.File{theirs}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	conn, err := net.FileConn(ours)
	if err != nil {
		t.Fatal(err)
	}
	f := &file{name: path, c: rpc.NewClient(conn), cmd: cmd}
	t.Cleanup(func() { _ = f.Close() })
	a, err := f.ask(Ask{Op: "open", Path: path, Flags: flags})
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	f.id = a.File
	return f, nil
}

func (f *file) ask(q Ask) (a Answer, err error) {
	q.File = f.id
	err = f.c.Call("Guest.Do", q, &a)
	switch {
	case err != nil:
		return a, fmt.Errorf("%s %s: guest: %w", q.Op, f.name, err)
	case a.Errno != 0:
		return a, fmt.Errorf("%s %s: %w", q.Op, f.name, a.Errno)
	case a.EOF:
		return a, io.EOF
	case a.Text != "":
		return a, fmt.Errorf("%s %s: %s", q.Op, f.name, a.Text)
	}
	return a, nil
}

// ReadAt is [io.ReaderAt].
func (f *file) ReadAt(p []byte, off int64) (int, error) {
	a, err := f.ask(Ask{Op: "read", Off: off, N: int64(len(p))})
	return copy(p, a.Data), err
}

// WriteAt is [io.WriterAt].
func (f *file) WriteAt(p []byte, off int64) (int, error) {
	a, err := f.ask(Ask{Op: "write", Off: off, Data: p})
	return int(a.N), err
}

func (f *file) sync() error {
	_, err := f.ask(Ask{Op: "sync"})
	return err
}

// zeroRange is BLKDISCARD or BLKZEROOUT.
func (f *file) zeroRange(req uint, off, n int64) error {
	_, err := f.ask(Ask{Op: "range", Req: req, Off: off, N: n})
	return err
}

func (f *file) fallocate(mode int, off, n int64) error {
	_, err := f.ask(Ask{Op: "fallocate", Flags: mode, Off: off, N: n})
	return err
}

// Close closes the file and ends the guest.
func (f *file) Close() (err error) {
	f.end.Do(func() {
		if f.id != 0 {
			_, err = f.ask(Ask{Op: "close"})
		}
		_ = f.c.Close()
		_ = f.cmd.Wait()
	})
	return err
}
