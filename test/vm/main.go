// Command vm runs the driver where its promises count: on real NFS and SMB
// mounts. `make vm` builds and runs it.
//
// It boots a User Mode Linux kernel as an ordinary process, with a root
// filesystem of Debian packages. In there, file servers and their clients are
// set up, and the tests of test/vm/guest run against them.
// The machine needs no NFS, no KVM and no network for it once the root
// filesystem is made.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

type options struct {
	kernel string // what boots, packed by xz or not
	bin    string // test binaries, plugin, root filesystem
	memory string
	run    string // of the guest's tests
	limit  time.Duration
	out    io.Writer
}

func main() {
	if os.Getpid() == 1 {
		initGuest()
	}
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	o := options{out: os.Stdout}
	flag.StringVar(&o.kernel, "kernel", "../shared/vm-harness/uml612.xz", "the `file` of a User Mode Linux kernel, or of one packed by xz")
	flag.StringVar(&o.bin, "bin", filepath.Dir(self), "`directory` of the binaries, and of the root filesystem once made")
	flag.StringVar(&o.memory, "memory", "800M", "of the virtual machine, in /dev/shm")
	flag.StringVar(&o.run, "run", "", "only tests of test/vm/guest that match this `regexp`")
	flag.DurationVar(&o.limit, "limit", 30*time.Minute, "when a virtual machine that has not ended is killed")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := vm(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
		os.Exit(1)
	}
}

// vm makes what has to be made, boots, and says whether all was well.
func vm(ctx context.Context, o options) (err error) {
	var binErr error
	if o.bin, binErr = filepath.Abs(o.bin); binErr != nil {
		return binErr
	}
	began := time.Now()
	root, err := rootImage(ctx, o.bin)
	if err != nil {
		return fmt.Errorf("make the root filesystem: %w", err)
	}
	fmt.Fprintf(o.out, "vm: root filesystem %s, after %.1f s\n", filepath.Base(root), time.Since(began).Seconds())
	dir, err := os.MkdirTemp("", "vhdx-vm-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	m := machine{o: o, dir: dir, root: root}
	if err := m.unpackKernel(ctx); err != nil {
		return fmt.Errorf("unpack the kernel %s: %w", o.kernel, err)
	}
	booted := time.Now()
	if err := m.boot(ctx); err != nil {
		return err
	}
	fmt.Fprintf(o.out, "vm: the virtual machine ran for %.1f s, all in all %.1f s\n", time.Since(booted).Seconds(), time.Since(began).Seconds())
	return m.status()
}

// status is what the guest has left. Nothing is a failure too.
func (m *machine) status() error {
	b, err := os.ReadFile(filepath.Join(m.dir, statusFile))
	if err != nil {
		return fmt.Errorf("the virtual machine ended without a status: %w", err)
	}
	code, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return fmt.Errorf("the virtual machine's status: %w", err)
	}
	if code != 0 {
		return fmt.Errorf("tests failed in the virtual machine, exit code %d", code)
	}
	return nil
}
