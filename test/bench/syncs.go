package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/unix"
)

// syncBlock is the block size of the images whose syncs are counted: the
// smallest, so that 1,000 blocks are 1 GB.
const syncBlock = int64(1) << 20

// countSyncs has each server flush o.flushes times, each flush after a write
// that allocates a block, and counts the sync calls it makes, as strace sees
// them from outside. QEMU flushes by fdatasync in its threads then, for what
// goes through a ring strace does not see; ours never syncs through its ring.
func countSyncs(ctx context.Context, o options, w io.Writer) error {
	_, _ = fmt.Fprintf(w, "\nSync calls of the server over %d guest flushes, each after a write that allocates a block of 1 MiB:\n", o.flushes)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintf(tw, "\tfdatasync\tfsync\tother\tsum\tafter growth\tper flush\tper flush without growth\t\n")
	for _, t := range []struct {
		target
		traced func(prefix []string) func(context.Context, string) (device, error)
	}{
		{target{name: qemu, create: createQEMU, vhdx: true}, func(p []string) func(context.Context, string) (device, error) { return attachQEMU(p, "threads") }},
		{target{name: ours, create: createOurs, vhdx: true}, func(p []string) func(context.Context, string) (device, error) { return attachOurs(p, "serve") }},
	} {
		c, err := traceSyncs(ctx, o, t.target, t.traced)
		if err != nil {
			return fmt.Errorf("count the syncs of %s: %w", t.name, err)
		}
		n := float64(o.flushes)
		_, _ = fmt.Fprintf(tw, "%s\t%d\t%d\t%d\t%d\t%d\t%.3f\t%.3f\t\n", t.name, c.kinds["fdatasync"], c.kinds["fsync"],
			c.total-c.kinds["fdatasync"]-c.kinds["fsync"], c.total, c.growth, float64(c.total)/n, float64(c.total-c.growth)/n)
	}
	_ = tw.Flush()
	_, _ = fmt.Fprintln(w, "\nOther: sync_file_range, syncfs, sync, msync, writes with RWF_SYNC or RWF_DSYNC, and every write to a file opened with O_SYNC or O_DSYNC.\nAfter growth: the first after the file was made larger. What is left beyond one per flush is the movement of the log's tail.")
	return nil
}

// counts of sync calls between the first and the last guest flush.
type counts struct {
	kinds  map[string]int
	total  int
	growth int
}

func traceSyncs(ctx context.Context, o options, t target, traced func([]string) func(context.Context, string) (device, error)) (c counts, err error) {
	path, log := join(o.dir, "syncs-"+t.name), join(o.dir, "strace-"+t.name)
	if err := t.create(ctx, path, int64(o.flushes+1)*syncBlock, syncBlock); err != nil {
		return c, err
	}
	strace := []string{"strace", "-f", "-q", "--seccomp-bpf", "-o", log, "-e", "signal=none", "-e",
		"trace=fsync,fdatasync,sync_file_range,syncfs,sync,msync,pwrite64,pwritev,pwritev2,write,io_submit,ftruncate,fallocate,open,openat,execve"}
	d, err := traced(strace)(ctx, path)
	if err != nil {
		return c, err
	}
	var from, to int64
	from, to, err = allocateAndFlush(d.path, o.flushes, log)
	err = errors.Join(err, d.detach(), t.clean(context.WithoutCancel(ctx), path))
	if err != nil {
		return c, err
	}
	f, err := os.Open(log)
	if err != nil {
		return c, err
	}
	defer func() { _ = f.Close() }()
	return countLog(f, from, to)
}

// allocateAndFlush is the guest. It returns which part of the log belongs to
// it: the first write and flush, which begin the session, are left out.
func allocateAndFlush(dev string, flushes int, log string) (from, to int64, err error) {
	f, err := os.OpenFile(dev, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buf, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = unix.Munmap(buf) }()
	for i := range flushes + 1 {
		buf[0] = byte(i) | 1
		if _, err := f.WriteAt(buf, int64(i)*syncBlock); err != nil {
			return 0, 0, err
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return 0, 0, err
		}
		if i == 0 {
			if from, err = sizeOf(log); err != nil {
				return 0, 0, err
			}
		}
	}
	to, err = sizeOf(log)
	return from, to, err
}

func sizeOf(path string) (int64, error) {
	st, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

var (
	call     = regexp.MustCompile(`^\d+ +(?:<\.\.\. )?([a-z_0-9]+)`)
	syncOpen = regexp.MustCompile(`O_D?SYNC.*= (\d+)$`)
	rwfSync  = regexp.MustCompile(`RWF_D?SYNC`)
	first    = regexp.MustCompile(`\((\d+)`)
)

// countLog reads strace's log. Lines before from matter only for which
// descriptors were opened with O_SYNC.
func countLog(r io.Reader, from, to int64) (counts, error) {
	c := counts{kinds: map[string]int{}}
	syncFDs := map[string]bool{}
	grown := false
	at := int64(0)
	in := bufio.NewScanner(r)
	in.Buffer(make([]byte, 1<<20), 1<<24)
	for in.Scan() {
		text := in.Text()
		here := at
		at += int64(len(text)) + 1
		m := call.FindStringSubmatch(text)
		if m == nil || strings.Contains(text, "resumed>") {
			continue // a call counts where it begins
		}
		name := m[1]
		if o := syncOpen.FindStringSubmatch(text); o != nil && strings.HasPrefix(name, "open") {
			syncFDs[o[1]] = true
		}
		if here < from || here >= to {
			continue
		}
		fd := first.FindStringSubmatch(text)
		switch {
		case name == "ftruncate", name == "fallocate" && !strings.Contains(text, "PUNCH_HOLE"):
			grown = true
		case name == "fdatasync", name == "fsync", name == "sync_file_range", name == "syncfs", name == "sync", name == "msync":
			c.count(name, &grown)
		case rwfSync.MatchString(text), strings.HasPrefix(name, "pwrite") && fd != nil && syncFDs[fd[1]]:
			c.count("O_SYNC", &grown)
		}
	}
	return c, in.Err()
}

func (c *counts) count(kind string, grown *bool) {
	c.kinds[kind]++
	c.total++
	if *grown {
		c.growth++
		*grown = false
	}
}
