package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// lines are all there is to measure.
func (b *bench) lines() []line {
	var all []line
	for _, part := range []func() []line{b.creating, b.converting, b.checking, b.writing, b.replaying} {
		all = append(all, part()...)
	}
	return all
}

func (b *bench) ours(args ...string) side { return side{args: append([]string{b.o.vhdxctl}, args...)} }

func theirs(args ...string) *side { return &side{args: append([]string{"qemu-img"}, args...)} }

// scale chooses a size: the real one, or one to try with.
func scale[T any](b *bench, real, short T) T {
	if b.o.short {
		return short
	}
	return real
}

func (b *bench) creating() []line {
	out := b.path("new.vhdx")
	return []line{
		{
			name: "create dynamic, 10 GiB", want: 1, writes: out,
			ours:   b.ours("create", out, "10G"),
			theirs: theirs("create", "-q", "-f", "vhdx", out, "10G"),
		},
		{
			name: "create fixed, 10 GiB", want: 1.5, writes: out,
			ours:   b.ours("create", "--fixed", "-q", out, "10G"),
			theirs: theirs("create", "-q", "-f", "vhdx", "-o", "subformat=fixed", out, "10G"),
		},
		{
			name: "create fixed, 10 GiB, space really taken", want: 1.5, writes: out,
			ours: b.ours("create", "--fixed", "-q", out, "10G"),
			theirs: &side{args: []string{
				"sh", "-c",
				`qemu-img create -q -f vhdx -o subformat=fixed,block_state_zero=off "$0" 10G && fallocate -l $(stat -c %s "$0") "$0" && sync "$0"`, out,
			}},
		},
	}
}

func (b *bench) converting() []line {
	size, third := scale(b, "10 GiB, a third full", "256 MiB, a third full"), scale(b, int64(10)<<30, int64(256)<<20)
	huge, tib := scale(b, "1 TiB, nearly empty", "16 GiB, nearly empty"), scale(b, int64(1)<<40, int64(16)<<30)
	var all []line
	for _, disk := range []struct {
		name, file string
		rounds     int
		make       func(path string) error
	}{
		{size, "third", 0, func(path string) error { return makeRaw(path, third, third/3) }},
		{huge, "huge", 1, func(path string) error { return makeRaw(path, tib, 256<<20) }},
	} {
		raw, image := b.path(disk.file+".raw"), b.path(disk.file+".vhdx")
		makeRaw := b.once(disk.file+".raw", disk.make)
		makeImage := func(ctx context.Context) error {
			if err := makeRaw(ctx); err != nil {
				return err
			}
			return b.once(disk.file+".vhdx", func(path string) error {
				return command(ctx, nil, b.o.vhdxctl, "convert", "-q", raw, path)
			})(ctx)
		}
		for _, l := range []line{
			{name: "raw to VHDX", reads: []string{raw}, writes: b.path("out.vhdx"), make: makeRaw},
			{name: "VHDX to raw", reads: []string{image}, writes: b.path("out.raw"), make: makeImage},
			{name: "VHDX to VHDX", reads: []string{image}, writes: b.path("out.vhdx"), make: makeImage},
		} {
			format := "vhdx"
			if l.writes == b.path("out.raw") {
				format = "raw"
			}
			name := "convert " + l.name + ", " + disk.name
			l.want, l.rounds = 1.5, disk.rounds
			l.ours = b.ours("convert", "-q", "-O", format, l.reads[0], l.writes)
			l.name, l.theirs = name, theirs("convert", "-O", format, l.reads[0], l.writes)
			l.theirs.unsynced = true
			all = append(all, l)
			if disk.rounds == 0 {
				l.name = name + "; qemu-img tuned (-m 16 -W, no page cache)"
				l.theirs = theirs("convert", "-m", "16", "-W", "-t", "none", "-T", "none", "-O", format, l.reads[0], l.writes)
				l.theirs.unsynced = true
				all = append(all, l)
			}
		}
	}
	return all
}

func (b *bench) checking() []line {
	name, size := scale(b, "64 TiB", "1 TiB"), scale(b, int64(64)<<40, int64(1)<<40)
	needs := func() error {
		if os.Geteuid() != 0 {
			return errors.New("mounting an XFS needs root")
		}
		return b.mountXFS()
	}
	full := b.path("xfs/full.vhdx")
	empty := b.path("xfs/empty.vhdx")
	return []line{
		{
			name: "check " + name + ", full block table, 32 MiB blocks", want: 1, reads: []string{full}, needs: needs,
			make:   b.once("xfs/full.vhdx", func(path string) error { return makeFull(path, size) }),
			ours:   b.ours("check", full),
			theirs: theirs("check", "-f", "vhdx", full),
		},
		{
			name: "open " + name + ", full block table, 32 MiB blocks", limit: 100 * time.Millisecond, reads: []string{full}, needs: needs,
			make: b.once("xfs/full.vhdx", func(path string) error { return makeFull(path, size) }),
			ours: b.ours("bench", "-c", "1", "-d", "1", full),
		},
		{
			name: "open " + name + ", empty, 32 MiB blocks", limit: 100 * time.Millisecond, reads: []string{empty}, needs: needs,
			make: b.once("xfs/empty.vhdx", func(path string) error {
				return command(context.Background(), nil, b.o.vhdxctl, "create", "--block-size", "32M", path, fmt.Sprint(size))
			}),
			ours: b.ours("bench", "-c", "1", "-d", "1", empty),
		},
	}
}

func (b *bench) writing() []line {
	file := b.path("write.vhdx")
	fresh := func(args ...string) func(context.Context) error {
		return func(ctx context.Context) error {
			if err := b.remove(file); err != nil {
				return err
			}
			return command(ctx, nil, append([]string{"qemu-img", "create", "-q", "-f", "vhdx"}, append(args, file, "10G")...)...)
		}
	}
	var all []line
	add := func(name string, want float64, setup func(context.Context) error, args ...string) {
		l := line{name: name, want: want, ours: b.ours(append(append([]string{"bench", "-q"}, args...), file)...)}
		l.theirs = theirs(append(append([]string{"bench", "-f", "vhdx", "-t", "none", "-i", "native"}, args...), file)...)
		l.ours.setup, l.theirs.setup = setup, setup
		all = append(all, l)
	}
	count := scale(b, "2048", "64")
	for _, every := range []struct{ n, depth string }{{"1", "1"}, {"16", "4"}, {"256", "4"}} {
		add("sequential allocating write, 1 MiB, a flush each "+every.n+" MiB", 1, fresh(),
			"-w", "-c", count, "-s", "1M", "-d", every.depth, "--flush-interval="+every.n)
	}
	add("random 4 KiB into an empty image, 1 MiB blocks, a flush each 16", 5, fresh("-o", "block_size=1M"),
		"-w", "-c", scale(b, "2048", "128"), "-s", "4096", "-S", "37892096", "-d", "1", "--flush-interval=16")
	allocated := b.allocated(file)
	count = scale(b, "40000", "500")
	for _, jobs := range []string{"1", "8"} {
		add("random 4 KiB read, allocated image, jobs: "+jobs, 1, allocated, "-c", count, "-s", "4096", "-S", "37892096", "-d", jobs)
		add("random 4 KiB write, allocated image, jobs: "+jobs, 1, allocated, "-w", "-c", count, "-s", "4096", "-S", "37892096", "-d", jobs)
	}
	return all
}

// allocated fills an image of 1 GiB once, and keeps it for the lines that
// follow each other.
func (b *bench) allocated(file string) func(context.Context) error {
	done := false
	return func(ctx context.Context) error {
		if done {
			return drop(file)
		}
		if err := b.remove(file); err != nil {
			return err
		}
		size := scale(b, "1G", "64M")
		if err := command(ctx, nil, "qemu-img", "create", "-q", "-f", "vhdx", file, size); err != nil {
			return err
		}
		done = true
		return command(ctx, nil, b.o.vhdxctl, "bench", "-q", "-w", "-c", scale(b, "1024", "64"), "-d", "4", "-s", "1M", file)
	}
}

func (b *bench) replaying() []line {
	var all []line
	for _, log := range []struct {
		name  string
		size  int64
		pages int
	}{{"1 MiB", 1 << 20, 226}, {"64 MiB", 64 << 20, scale(b, 120*126, 1000)}} {
		dirty, file := "dirty-"+fmt.Sprint(log.size)+".vhdx", b.path("replay.vhdx")
		make := b.once(dirty, func(path string) error { return makeDirty(path, log.size, log.pages) })
		setup := func(ctx context.Context) error { return copySparse(ctx, b.path(dirty), file) }
		l := line{
			name: "replay of a full log of " + log.name, want: 1.5, make: make, writes: file,
			ours: b.ours("check", "-r", "all", file), theirs: theirs("check", "-q", "-f", "vhdx", "-r", "all", file),
		}
		l.ours.setup, l.theirs.setup = setup, setup
		all = append(all, l)
	}
	return all
}
