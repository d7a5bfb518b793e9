package keeper

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// network is SOCK_SEQPACKET: a packet arrives whole or not at all.
const network = "unixpacket"

// maxSocketPath is what fits into a socket's address, with its final zero.
const maxSocketPath = 107

// address gives a path to a socket that is short enough: a long one goes
// through the open directory. done frees what that took.
func address(path string) (addr *net.UnixAddr, done func(), err error) {
	if len(path) <= maxSocketPath {
		return &net.UnixAddr{Name: path, Net: network}, func() {}, nil
	}
	dir, err := os.OpenFile(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, nil, err
	}
	short := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))
	return &net.UnixAddr{Name: short, Net: network}, func() { _ = dir.Close() }, nil
}

// send writes one packet with descriptors beside it.
func send(c *net.UnixConn, b []byte, files []int) error {
	var rights []byte
	if len(files) > 0 {
		rights = unix.UnixRights(files...)
	}
	_, _, err := c.WriteMsgUnix(b, rights, nil)
	return err
}

var errTruncated = errors.New("packet or its descriptors exceed the protocol's limits")

// receive reads one packet of at most limit bytes. The descriptors, which
// close on exec, are the caller's; on an error there are none.
func receive(c *net.UnixConn, limit int) ([]byte, []int, error) {
	b := make([]byte, limit)
	oob := make([]byte, unix.CmsgSpace(4*MaxFiles))
	n, oobn, flags, _, err := c.ReadMsgUnix(b, oob)
	files, rightsErr := rights(oob[:oobn])
	if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = errTruncated
	}
	if err = errors.Join(err, rightsErr); err != nil {
		closeAll(files)
		return nil, nil, err
	}
	return b[:n], files, nil
}

func rights(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []int
	for _, m := range messages {
		if m.Header.Level != unix.SOL_SOCKET || m.Header.Type != unix.SCM_RIGHTS {
			continue
		}
		got, err := unix.ParseUnixRights(&m)
		files = append(files, got...)
		if err != nil {
			return files, err
		}
	}
	return files, nil
}

func closeAll(files []int) {
	for _, fd := range files {
		_ = unix.Close(fd)
	}
}

// duplicate copies descriptors, all or none.
func duplicate(files []int) ([]int, error) {
	out := make([]int, 0, len(files))
	for _, fd := range files {
		d, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			closeAll(out)
			return nil, fmt.Errorf("duplicate descriptor: %w", err)
		}
		out = append(out, d)
	}
	return out, nil
}

// descriptors copies those of files. (*os.File).Fd would make a non-blocking
// open file blocking, for every process that shares it.
func descriptors(files []*os.File) ([]int, error) {
	out := make([]int, 0, len(files))
	for _, f := range files {
		raw, err := f.SyscallConn()
		if err == nil {
			err = errors.Join(raw.Control(func(fd uintptr) {
				var d int
				if d, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 3); err == nil {
					out = append(out, d)
				}
			}), err)
		}
		if err != nil {
			closeAll(out)
			return nil, fmt.Errorf("duplicate %s: %w", f.Name(), err)
		}
	}
	return out, nil
}

// peer returns the user and process at the other end, as of its connect.
func peer(c *net.UnixConn) (*unix.Ucred, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil {
		return nil, cerr
	}
	return cred, err
}
