package keeper

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fuseConn is a FUSE filesystem that is mounted nowhere: its server's
// descriptor, and a directory to look into.
func fuseConn(t *testing.T) (dev, dir *os.File) {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Skipf("needs /dev/fuse: %v", err)
	}
	fs, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	if err != nil {
		t.Skipf("needs root and FUSE: %v", err)
	}
	defer func() { _ = unix.Close(fs) }()
	for k, v := range map[string]string{"source": "keeper-test", "fd": strconv.Itoa(fd), "rootmode": "40000", "user_id": "0", "group_id": "0"} {
		check(t, unix.FsconfigSetString(fs, k, v))
	}
	check(t, unix.FsconfigCreate(fs))
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	check(t, err)
	dir = os.NewFile(uintptr(mnt), "mount")
	t.Cleanup(func() { _ = dir.Close() })
	return os.NewFile(uintptr(fd), "/dev/fuse"), dir
}

// The numbers of FUSE that this takes.
const (
	fuseLookup = 1
	fuseInit   = 26
)

// request reads the next request of an operation and returns its number.
func request(t *testing.T, fd int, op uint32) uint64 {
	t.Helper()
	b := make([]byte, 1<<17)
	for range 2000 {
		n, err := unix.Read(fd, b)
		switch {
		case err == nil && n >= 40 && binary.LittleEndian.Uint32(b[4:]) == op:
			return binary.LittleEndian.Uint64(b[8:])
		case err == nil, errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			time.Sleep(5 * time.Millisecond)
		default:
			t.Fatalf("read from /dev/fuse: %v", err)
		}
	}
	t.Fatalf("no request %d comes", op)
	return 0
}

func reply(t *testing.T, fd int, unique uint64, errno unix.Errno, body []byte) {
	t.Helper()
	b := binary.LittleEndian.AppendUint32(nil, uint32(16+len(body)))
	b = binary.LittleEndian.AppendUint32(b, uint32(-int32(errno)))
	b = binary.LittleEndian.AppendUint64(b, unique)
	_, err := unix.Write(fd, append(b, body...))
	check(t, err)
}

// roleLook looks for a name in the directory that is descriptor 3.
func roleLook(args []string) error {
	_, err := unix.Openat(3, args[0], unix.O_RDONLY|unix.O_CLOEXEC, 0)
	errno, _ := errors.AsType[unix.Errno](err)
	fmt.Println("errno", int(errno))
	return nil
}

// I-KEEP-1, I-KEEP-4 with the real kernel: a request that waits for a server
// survives the server, is answered by its successor, and fails only when the
// keeper drops the descriptor. That neither waits for anything nor holds up
// other clients.
func TestFUSE(t *testing.T) {
	_, socket := startKeeper(t)
	dev, dir := fuseConn(t)
	first := dial(t, socket)
	check(t, first.Put(t.Context(), Item{ID: "vol", Generation: 1, Files: []*os.File{dev}}))
	check(t, dev.Close())
	check(t, first.Close())

	look := func(name string) *process {
		return role(t, "look", func(c *exec.Cmd) { c.ExtraFiles = []*os.File{dir} }, name)
	}
	waiting := look("file") // nobody serves now, not even INIT has been answered
	second := dial(t, socket)
	got, err := second.Get(t.Context(), "vol")
	check(t, err)
	fds, err := descriptors(got.Files)
	check(t, err)
	fd := fds[0]
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Fatalf("flags %#o, %v: the way through the keeper has changed the open file", flags, err)
	}
	init := make([]byte, 64)
	binary.LittleEndian.PutUint32(init, 7)
	binary.LittleEndian.PutUint32(init[4:], 31)
	binary.LittleEndian.PutUint32(init[12:], 1<<18) // PARALLEL_DIROPS
	binary.LittleEndian.PutUint32(init[20:], 1<<16) // max_write
	reply(t, fd, request(t, fd, fuseInit), 0, init)
	reply(t, fd, request(t, fd, fuseLookup), unix.ENOENT, nil)
	if s := waiting.line(t, "errno"); s != fmt.Sprintln("errno", int(unix.ENOENT)) {
		t.Fatalf("got %q", s)
	}

	var pending []*process
	for i := range 5 {
		pending = append(pending, look(fmt.Sprint("file", i))) // the kernel asks once for one name
	}
	for range 5 {
		request(t, fd, fuseLookup) // taken, and never answered
	}
	check(t, got.Close())
	closeAll(fds)
	check(t, second.Close()) // which has copies, too
	third := dial(t, socket)
	began := time.Now()
	check(t, third.Drop(t.Context(), "vol", 1))
	_, err = third.List(t.Context())
	check(t, err)
	t.Logf("dropped with 5 requests under way in %v", time.Since(began))
	for _, p := range pending {
		s := p.line(t, "errno")
		if n := strings.TrimSpace(strings.TrimPrefix(s, "errno")); n != strconv.Itoa(int(unix.ECONNABORTED)) && n != strconv.Itoa(int(unix.ENOTCONN)) {
			t.Fatalf("got %q", s)
		}
	}
}
