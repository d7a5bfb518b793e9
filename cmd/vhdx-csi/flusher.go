package main

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
)

// becomeIOFlusher starts this program anew, as the same process, with the mark
// of a server of block I/O on every thread. The mark is a thread's, and Go has
// made several by now; after execve there is only the marked one to descend
// from. Without the right to set it the program goes on as it is.
func becomeIOFlusher(log klog.Logger) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if marked, err := unix.PrctlRetInt(unix.PR_GET_IO_FLUSHER, 0, 0, 0, 0); err == nil && marked == 1 {
		return
	}
	err := blockdev.SetIOFlusher()
	if err == nil {
		var self string
		if self, err = os.Executable(); err == nil {
			err = unix.Exec(self, os.Args, os.Environ())
		}
	}
	log.Info("Memory reclaim may wait for a volume of this process", "reason", err.Error())
}
