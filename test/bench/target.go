package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/loopdev"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// A target is one of the three things compared: how to make an image and how
// to get a block device from it.
type target struct {
	name string
	// create makes a fresh image.
	create func(ctx context.Context, path string, size, blockSize int64) error
	attach func(ctx context.Context, path string) (device, error)
	vhdx   bool
}

// device is a block device until detach.
type device struct {
	path   string
	detach func() error
	pid    int // of the server, if it is ours
}

const (
	ours = "ours"
	qemu = "qemu"
	raw  = "raw"
)

// targets: qemu-storage-daemon gets what makes it fastest here, direct and
// native asynchronous I/O on the image and an export that loop can use
// directly.
func targets() []target {
	return []target{
		{raw, createRaw, attachRaw, false},
		{qemu, createQEMU, attachQEMU(nil, "native"), true},
		{ours, createOurs, attachOurs(nil, "serve"), true},
	}
}

func createRaw(_ context.Context, path string, size, _ int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

func createQEMU(ctx context.Context, path string, size, blockSize int64) error {
	args := []string{"create", "-q", "-f", "vhdx"}
	if blockSize > 0 {
		args = append(args, "-o", fmt.Sprint("block_size=", blockSize))
	}
	return tool(ctx, "qemu-img", append(args, path, fmt.Sprint(size))...)
}

func createOurs(_ context.Context, path string, size, blockSize int64) error {
	_, err := vhdx.Create(path, vhdx.CreateOptions{Size: size, BlockSize: blockSize})
	return err
}

func attachRaw(_ context.Context, path string) (device, error) { return loop(path, "") }

// loop puts a loop device with direct I/O on a file, which is called name
// once it is open ("": by its own name).
func loop(path, name string) (device, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return device{}, err
	}
	defer func() { _ = f.Close() }()
	if name == "" {
		name = path[strings.LastIndexByte(path, '/')+1:]
	}
	dev, err := loopdev.Attach(loopdev.Config{File: f, BlockSize: 512, Tag: name})
	if err != nil {
		return device{}, err
	}
	n, err := loopdev.Number(dev)
	if err != nil {
		return device{}, err
	}
	return device{path: dev, detach: func() error {
		for range 100 {
			_, err = loopdev.Detach(n, name)
			if !errors.Is(err, loopdev.ErrBusy) {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		return err
	}}, nil
}

// under puts a prefix (strace and its options) before a command. A server has
// a process group of its own: Ctrl-C is for this program, which then detaches
// in order.
func under(prefix, args []string) *exec.Cmd {
	args = append(append([]string{}, prefix...), args...)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

func attachOurs(prefix []string, how string) func(context.Context, string) (device, error) {
	return func(_ context.Context, path string) (device, error) {
		cmd := under(prefix, []string{"/proc/self/exe", how, path})
		if len(prefix) > 0 {
			self, err := os.Executable() // strace's own /proc/self/exe is strace
			if err != nil {
				return device{}, err
			}
			cmd = under(prefix, []string{self, how, path})
		}
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		if err != nil {
			return device{}, err
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			return device{}, err
		}
		if err := cmd.Start(); err != nil {
			return device{}, err
		}
		stop := func() error { return errors.Join(in.Close(), cmd.Wait()) }
		dev, err := line(out, 20*time.Second)
		if err != nil {
			return device{}, fmt.Errorf("serve %s: %w", path, errors.Join(err, stop()))
		}
		return device{strings.TrimSpace(dev), stop, cmd.Process.Pid}, nil
	}
}

// attachQEMU exports an image by FUSE on a file beside it and puts a loop
// device on that.
func attachQEMU(prefix []string, aio string) func(context.Context, string) (device, error) {
	return func(ctx context.Context, path string) (device, error) {
		export := path + "-export"
		if err := os.WriteFile(export, nil, 0o600); err != nil {
			return device{}, err
		}
		pidfile := path + "-pid"
		cmd := under(prefix, []string{
			"qemu-storage-daemon",
			"--blockdev", "driver=file,node-name=f,cache.direct=on,aio=" + aio + ",filename=" + path,
			"--blockdev", "driver=vhdx,node-name=v,cache.direct=on,file=f",
			"--export", "type=fuse,id=e,node-name=v,writable=on,mountpoint=" + export,
			"--pidfile", pidfile,
		})
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			return device{}, err
		}
		stop := func() error {
			err := errors.Join(terminate(pidfile), cmd.Wait())
			return errors.Join(err, os.Remove(export))
		}
		if err := exported(ctx, export); err != nil {
			return device{}, errors.Join(err, stop())
		}
		d, err := loop(export, "")
		if err != nil {
			return device{}, errors.Join(err, stop())
		}
		return device{path: d.path, detach: func() error { return errors.Join(d.detach(), stop()) }}, nil
	}
}

// exported waits until the export covers the file.
func exported(ctx context.Context, path string) error {
	for range 400 {
		var st unix.Statfs_t
		if err := unix.Statfs(path, &st); err == nil && st.Type == unix.FUSE_SUPER_MAGIC {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(25 * time.Millisecond):
		}
	}
	return fmt.Errorf("qemu-storage-daemon did not export %s", path)
}

// terminate ends the process a pidfile names, which may run under strace.
func terminate(pidfile string) error {
	b, err := os.ReadFile(pidfile)
	if err != nil {
		return err
	}
	var pid int
	if _, err := fmt.Sscan(string(b), &pid); err != nil {
		return err
	}
	return unix.Kill(pid, unix.SIGTERM)
}

// clean has another implementation look at a VHDX.
func (t target) clean(ctx context.Context, path string) error {
	if !t.vhdx {
		return nil
	}
	return tool(ctx, "qemu-img", "check", "-q", "-f", "vhdx", path)
}

func tool(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}
