package supervisor

import (
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// stuckAfter is when a killed worker that does not go away is reported.
const stuckAfter = 10 * time.Second

// reap forgets workers that have gone, and as PID 1 the orphans of others too.
func (s *supervisor) reap() {
	kept := s.leaving[:0]
	for _, w := range s.leaving {
		select {
		case err := <-w.exited:
			if w.exit(err).failed {
				s.strike(w.suspects)
			}
			continue
		default:
		}
		if time.Since(w.left) > stuckAfter && !w.warned {
			w.warned = true
			s.o.Note(fmt.Sprintf("worker %d has been killed and does not go away: one of its threads waits in the kernel, and the locks of its images stay held", w.pid()))
		}
		kept = append(kept, w)
	}
	s.leaving = kept
	if os.Getpid() == 1 {
		s.reapOrphans()
	}
}

// reapOrphans collects children that this program has not started as workers.
// One that it has stays for its own waiter.
func (s *supervisor) reapOrphans() {
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		pid := childOf(&info)
		if err != nil || pid == 0 || s.knows(pid) {
			return
		}
		_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
	}
}

func (s *supervisor) knows(pid int) bool {
	if s.worker != nil && s.worker.pid() == pid {
		return true
	}
	for _, w := range s.leaving {
		if w.pid() == pid {
			return true
		}
	}
	return false
}

// childOf returns the process that waitid found, 0 for none: the kernel's
// siginfo has it behind three numbers, aligned as a pointer.
func childOf(info *unix.Siginfo) int {
	const off = (3*4 + unsafe.Sizeof(uintptr(0)) - 1) / unsafe.Sizeof(uintptr(0)) * unsafe.Sizeof(uintptr(0))
	return int(*(*int32)(unsafe.Add(unsafe.Pointer(info), off)))
}
