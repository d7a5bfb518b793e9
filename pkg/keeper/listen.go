package keeper

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// ErrRunning: another keeper listens on the socket.
var ErrRunning = errors.New("another keeper is running")

// socketMode: root alone connects. The peer's user is checked all the same.
const socketMode = 0o600

// listen makes the socket. A lock beside it, held for the keeper's life,
// decides between two keepers; the socket of one that has died is removed.
func listen(path string) (*net.UnixListener, func(), error) {
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("lock the keeper's socket: %w", err)
	}
	unlock := func() { _ = lock.Close() }
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		unlock()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, nil, fmt.Errorf("%w at %s: end it, or give this one another --keeper-socket", ErrRunning, path)
		}
		return nil, nil, fmt.Errorf("lock %s.lock: %w", path, err)
	}
	l, err := bind(path)
	if err != nil {
		unlock()
		return nil, nil, err
	}
	return l, unlock, nil
}

func bind(path string) (*net.UnixListener, error) {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("look at the keeper's socket: %w", err)
	case st.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("%s exists and is no socket (%s): remove it or choose another --keeper-socket", path, st.Mode().Type())
	default:
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove the old keeper's socket: %w", err)
		}
	}
	addr, done, err := address(path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	defer done()
	l, err := net.ListenUnix(network, addr)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	// Removed here neither now nor later: the next keeper does it under the
	// lock, and closing must not remove that one's.
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(path, socketMode); err != nil {
		return nil, errors.Join(fmt.Errorf("set the mode of %s: %w", path, err), l.Close())
	}
	return l, nil
}
