package driver

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxSocketPath is what fits into a socket address, with its final zero.
const maxSocketPath = 107

// socketMode lets the plugin's own user and group connect. Sidecars that run
// as other users share the group (fsGroup).
const socketMode = 0o660

// listenPatience is how long a process that listens on the socket may take to end.
const listenPatience = 5 * time.Second

// Listen opens the socket of an endpoint, unix:///path or unix:path, and makes
// its directory if there is none. A socket that an earlier process left there is removed; a live one, or a file that is
// no socket, is not.
func Listen(endpoint string) (net.Listener, error) {
	path, err := socketPath(endpoint)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, fmt.Errorf("make the directory of the socket: %w", err)
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Chmod(path, socketMode); err != nil {
		return nil, errors.Join(fmt.Errorf("set the mode of the socket: %w", err), l.Close())
	}
	return l, nil
}

func socketPath(endpoint string) (string, error) {
	path, ok := strings.CutPrefix(endpoint, "unix://")
	if !ok {
		path, ok = strings.CutPrefix(endpoint, "unix:")
	}
	if !ok || path == "" {
		return "", fmt.Errorf("endpoint %q: only Unix sockets are served; write unix:///path/to/csi.sock", endpoint)
	}
	if len(path) > maxSocketPath {
		return "", fmt.Errorf("endpoint %q: the path has %d bytes, a socket's may have %d", endpoint, len(path), maxSocketPath)
	}
	return path, nil
}

// removeStale removes a socket nobody listens on.
func removeStale(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at %s: %w", path, err)
	}
	if st.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s exists and is no socket (%s): remove it or choose another --endpoint", path, st.Mode().Type())
	}
	if err := awaitNobody(path); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the old socket: %w", err)
	}
	return nil
}

// awaitNobody waits until nobody alive listens on a socket. A worker that has
// been killed with the supervisor that made the socket may keep it open for as
// long as the kernel takes to bury it.
func awaitNobody(path string) error {
	for end := time.Now().Add(listenPatience); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.DialTimeout("unix", path, time.Second)
		if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("see who listens on %s: %w", path, err)
		}
		pid, err := listenerOf(c)
		if err = errors.Join(err, c.Close()); err != nil {
			return fmt.Errorf("see who listens on %s: %w", path, err)
		}
		if pid > 0 && !alive(pid) {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s: another process (%d) listens there: stop it or choose another --endpoint", path, pid)
		}
	}
}

// listenerOf is the process that made the socket at the other end, 0 where it
// cannot be seen from this container.
func listenerOf(c net.Conn) (pid int, err error) {
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var opt error
	err = raw.Control(func(fd uintptr) { cred, opt = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, opt); err != nil {
		return 0, err
	}
	return int(cred.Pid), nil
}

// alive reports whether a process is there and has not ended.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ESRCH)
	}
	i := bytes.LastIndexByte(b, ')')
	return i < 0 || i+2 >= len(b) || (b[i+2] != 'Z' && b[i+2] != 'X')
}
