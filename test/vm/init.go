package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// initGuest is the guest's first process. It runs the tests, leaves their exit
// code in /out, and switches the machine off.
func initGuest() {
	code, err := runGuest()
	if err != nil {
		fmt.Fprintln(os.Stderr, "vm init:", err)
		code = max(code, 1)
	}
	if err := os.WriteFile("/out/"+statusFile, []byte(strconv.Itoa(code)), 0o600); err != nil {
		fmt.Fprintln(os.Stderr, "vm init:", err) // the host sees that there is none
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}

// tests run for this long at most, of which the host waits a little more.
const testLimit = "28m"

func runGuest() (int, error) {
	if err := prepareGuest(); err != nil {
		return 0, err
	}
	up, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return 0, err
	}
	fmt.Fprintf(os.Stdout, "vm: booted in %s s\n", strings.Fields(string(up))[0])
	cmd := exec.Command("/bins/guest.test", "-test.v", "-test.timeout="+testLimit, "-test.run="+os.Getenv("VM_RUN"))
	cmd.Env = append(os.Environ(), "VHDX_VM=1", "HOME=/root",
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	return reap(cmd.Process.Pid)
}

// reap waits for every process whose parent has ended, until the one of this
// number ends.
func reap(last int) (int, error) {
	for {
		var s syscall.WaitStatus
		switch pid, err := syscall.Wait4(-1, &s, 0, nil); {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 0, err
		case pid == last && s.Exited():
			return s.ExitStatus(), nil
		case pid == last:
			return 0, fmt.Errorf("the tests were ended by %v", s.Signal())
		}
	}
}

// prepareGuest mounts what a machine has, and memory wherever something is
// written, for the root filesystem is read-only.
func prepareGuest() error {
	type mount struct{ kind, dir, data string }
	mounts := []mount{{"proc", "/proc", ""}, {"sysfs", "/sys", ""}, {"hostfs", "/out", os.Getenv("VM_OUT")}}
	for _, d := range []string{"/run", "/tmp", "/mnt", "/srv", "/var", "/root", "/etc/ksmbd", "/dev/shm"} {
		mounts = append(mounts, mount{"tmpfs", d, ""})
	}
	for _, m := range mounts {
		if strings.HasPrefix(m.dir, "/dev/") {
			if err := os.MkdirAll(m.dir, 0o700); err != nil {
				return err
			}
		}
		if err := unix.Mount("none", m.dir, m.kind, 0, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	if err := unix.Sethostname([]byte("vm")); err != nil {
		return err
	}
	if out, err := exec.Command("/sbin/ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("ip link: %w: %s", err, out)
	}
	return nil
}
