package supervisor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// hangingDir mounts a FUSE filesystem that takes a request and never answers:
// whoever asked cannot be killed until release.
func hangingDir(t *testing.T) (dir string, taken <-chan error, release func()) {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Skipf("needs /dev/fuse: %v", err)
	}
	dir = t.TempDir()
	if err := unix.Mount("supervisor-test", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd)); err != nil {
		t.Skipf("needs root and FUSE: %v", err)
	}
	done := false
	release = func() {
		if !done {
			done = true
			_ = unix.Close(fd)
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
	}
	t.Cleanup(release)
	c := make(chan error, 1)
	go func() { c <- takeOne(fd) }()
	return dir, c, release
}

// takeOne answers INIT and takes one LOOKUP.
func takeOne(fd int) error {
	const opLookup, opInit = 1, 26
	b := make([]byte, 1<<17)
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		n, err := unix.Read(fd, b)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOENT):
			time.Sleep(time.Millisecond)
		case err != nil:
			return err
		case n >= 40 && binary.LittleEndian.Uint32(b[4:]) == opInit:
			out := make([]byte, 16+64)
			binary.LittleEndian.PutUint32(out, uint32(len(out)))
			copy(out[8:16], b[8:16])
			binary.LittleEndian.PutUint32(out[16:], 7)
			binary.LittleEndian.PutUint32(out[20:], 31)
			if _, err := unix.Write(fd, out); err != nil {
				return err
			}
		case n >= 40 && binary.LittleEndian.Uint32(b[4:]) == opLookup:
			return nil
		}
	}
	return errors.New("no request came")
}

// I-SUP-2, with a real process that cannot be reaped: a thread of it waits in
// the kernel. Both a kill from outside and one for a hang are answered by a
// successor while it is still there.
func TestUnreapableWorker(t *testing.T) {
	for _, how := range []string{"kill", "hang"} {
		t.Run(how, func(t *testing.T) {
			dir, taken, release := hangingDir(t)
			v := start(t, setup{Heartbeat: 400 * time.Millisecond})
			pid := v.pid()
			v.ask("open " + dir + "/file")
			if err := <-taken; err != nil {
				t.Fatal(err)
			}
			c := v.connect()
			defer c.Close()
			began := time.Now()
			_, _ = fmt.Fprintln(c, how)
			r := v.restart()
			t.Logf("%s: noticed after %v: %s", how, time.Since(began), r.Cause)
			if r.PID != pid || r.Failed != (how == "hang") {
				t.Fatalf("%+v", r)
			}
			if now := v.pid(); now == pid {
				t.Fatal("no successor")
			}
			if status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)); err != nil || !strings.Contains(string(status), "\nState:") {
				t.Fatalf("the old worker is gone: this shows nothing (%v)", err)
			}
			release()
			gone(t, pid)
		})
	}
}
