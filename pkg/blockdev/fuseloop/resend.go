package fuseloop

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	w "github.com/csi-vhdx/csi-driver-vhdx/internal/fusewire"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev"
)

// errNoResend: a device of this kernel does not outlive its server.
var errNoResend = errors.New("a device would not outlive the death of the plugin: upgrade the kernel, or allow devices to be lost with --allow-device-loss")

// resendOf says what keeps a successor from taking over what is in flight:
// missing, for a kernel on which it must not be tried; doubt, for one on which
// it works, but for a bug that these devices are not known to meet. release is
// uname's. docs/reference/vhdx-csi.md cites the fixes.
func resendOf(flags uint64, release string) (missing, doubt string) {
	v, known := parseRelease(release)
	has := flags&w.HasResend != 0
	switch {
	case !has:
		return "it does not send requests again that a dead server has read; Linux 6.9.4 and 6.10 do", ""
	case !known:
		return "", "its version does not tell whether the fixes of FUSE_NOTIFY_RESEND are in it"
	case v.before(6, 9, 0):
		return "", "it has FUSE_NOTIFY_RESEND by backport, and its version does not tell whether the fixes are in it too"
	case v.before(6, 9, 4):
		return "sending requests again can damage their state in it; Linux 6.9.4 and 6.10 are fixed", ""
	case v.before(6, 12, 96), !v.before(6, 13, 0) && v.before(6, 18, 39), !v.before(6, 19, 0) && v.before(7, 1, 4):
		return "", "unless its vendor has fixed it, a signal to a process that waits for the device during a restart can damage the kernel's memory (CVE-2026-64265; fixed in Linux 6.12.96, 6.18.39 and 7.1.4)"
	}
	return "", ""
}

type version [3]int

func (v version) before(major, minor, patch int) bool {
	for i, n := range [3]int{major, minor, patch} {
		if v[i] != n {
			return v[i] < n
		}
	}
	return false
}

// parseRelease reads the numbers that a release such as 6.12.48+deb13-amd64 begins with.
func parseRelease(release string) (v version, ok bool) {
	end := strings.IndexFunc(release, func(r rune) bool { return r != '.' && (r < '0' || r > '9') })
	if end < 0 {
		end = len(release)
	}
	parts := strings.SplitN(strings.TrimSuffix(release[:end], "."), ".", 4)
	if len(parts) < 2 {
		return v, false
	}
	for i, p := range parts[:min(3, len(parts))] {
		n, err := strconv.Atoi(p)
		if err != nil {
			return v, false
		}
		v[i] = n
	}
	return v, true
}

// keepable reports whether the device can be kept for a successor. It must not
// be tried on a kernel where requests in flight are lost with the server: they
// would hang for ever.
func (d *Device) keepable(agreed params) (bool, error) {
	release := d.a.o.release
	if release == "" {
		var u unix.Utsname
		if err := unix.Uname(&u); err != nil {
			return false, fmt.Errorf("ask for the kernel's version: %w", err)
		}
		release = unix.ByteSliceToString(u.Release[:])
	}
	missing, doubt := resendOf(agreed.flags, release)
	switch {
	case missing != "" && !d.a.o.AllowWithoutResend:
		return false, fmt.Errorf("kernel %s: %s: %w: %w", release, missing, errNoResend, blockdev.ErrUnavailable)
	case missing != "":
		d.note("the death of the plugin will cost this device, with what was written to it and not flushed: kernel %s: %s", release, missing)
		return false, nil
	case doubt != "":
		d.note("a restart of the plugin carries a risk: kernel %s: %s", release, doubt)
	}
	return true, nil
}
