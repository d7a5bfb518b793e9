package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// machine is one virtual machine.
type machine struct {
	o      options
	dir    string // the guest's /out: status, logs
	root   string
	kernel string
}

// What the guest leaves in /out.
const statusFile = "status"

// diskSize is that of the disk behind the exports. It is sparse.
const diskSize = 8 << 30

// unpackKernel makes the kernel executable, whatever it is packed by.
func (m *machine) unpackKernel(ctx context.Context) error {
	m.kernel = filepath.Join(m.dir, "linux")
	f, err := os.OpenFile(m.kernel, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o700)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "xz", "--decompress", "--stdout", "--force", m.o.kernel)
	cmd.Stdout, cmd.Stderr = f, os.Stderr
	return errors.Join(cmd.Run(), f.Close())
}

// boot runs the virtual machine until it powers itself off. Its own exit code
// says nothing about what happened inside.
func (m *machine) boot(ctx context.Context) error {
	disk := filepath.Join(m.dir, "disk")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(disk, diskSize); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, m.o.limit, fmt.Errorf("the virtual machine has not ended within %v", m.o.limit))
	defer cancel()
	cmd := exec.CommandContext(ctx, m.kernel,
		"mem="+m.o.memory, "root=/dev/ubda", "rootfstype=ext4", "ro", "ubd0r="+m.root, "ubd1="+disk,
		"quiet", "loglevel=1", "con0=fd:0,fd:1", "con=null", "ssl=null", "umid=vm", "uml_dir="+m.dir+"/", "panic=-1",
		// Host directories that the guest mounts, and what it is to run. The
		// kernel makes variables of what it does not know.
		"VM_OUT="+m.dir, "VM_BIN="+m.o.bin, "VM_RUN="+m.o.run,
		"init=/sbin/vm-init")
	// The guest's memory is a file there, removed as soon as it is open.
	cmd.Env = append(os.Environ(), "TMPDIR=/dev/shm")
	cmd.Stdout, cmd.Stderr = m.o.out, m.o.out
	// The kernel is several processes: they end together.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("run the virtual machine: %w", err)
	}
	return nil
}
