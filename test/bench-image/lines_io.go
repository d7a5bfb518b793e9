package main

import (
	"context"
	"fmt"
)

// randomStep is odd in units of 4 KiB and shares no factor with the sizes of
// the images here: requests this far apart visit all of an image, far from
// each other.
const randomStep = "37892096"

func (b *bench) writing() []line {
	file := b.path("write.vhdx")
	fresh := func(args ...string) func(context.Context) error {
		return func(ctx context.Context) error {
			if err := b.remove(file); err != nil {
				return err
			}
			return command(ctx, append([]string{"qemu-img", "create", "-q", "-f", "vhdx"}, append(args, file, "10G")...)...)
		}
	}
	var all []line
	add := func(name string, want float64, setup func(context.Context) error, args ...string) {
		l := line{name: name, want: want, check: b.clean(file)}
		l.ours = b.ours(append(append([]string{"bench", "-q"}, args...), file)...)
		l.theirs = theirs(append(append([]string{"bench", "-f", "vhdx", "-t", "none", "-i", "native"}, args...), file)...)
		l.ours.setup, l.theirs.setup = setup, setup
		all = append(all, l)
	}
	count := scale(b, "2048", "32")
	for _, every := range []struct{ n, depth string }{{"1", "1"}, {"16", "4"}, {"256", "4"}} {
		add("sequential allocating write, 1 MiB each, a flush each "+every.n+" MiB, jobs: "+every.depth, 1, fresh(),
			"-w", "-c", count, "-s", "1M", "-d", every.depth, "--flush-interval="+every.n)
	}
	add("random 4 KiB write into an empty image, 1 MiB blocks, a flush each 16", 5, fresh("-o", "block_size=1M"),
		"-w", "-c", scale(b, "2048", "64"), "-s", "4096", "-S", randomStep, "-d", "1", "--flush-interval=16")
	allocated := b.allocated(file)
	count = scale(b, "30000", "200")
	for _, jobs := range []string{"1", "8"} {
		add("random 4 KiB read, allocated image, jobs: "+jobs, 1, allocated, "-c", count, "-s", "4096", "-S", randomStep, "-d", jobs)
		add("random 4 KiB write, allocated image, jobs: "+jobs, 1, allocated, "-w", "-c", count, "-s", "4096", "-S", randomStep, "-d", jobs)
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
		size := scale(b, "1G", "32M")
		if err := command(ctx, "qemu-img", "create", "-q", "-f", "vhdx", file, size); err != nil {
			return err
		}
		done = true
		return command(ctx, b.o.vhdxctl, "bench", "-q", "-w", "-c", scale(b, "1024", "32"), "-d", "4", "-s", "1M", file)
	}
}

func (b *bench) replaying() []line {
	var all []line
	for _, log := range []struct {
		size  int64 // MiB
		pages int   // that fill it
	}{{1, 226}, {scale(b, int64(64), 2), scale(b, 120*126, 470)}} {
		name := fmt.Sprintf("dirty-%d.vhdx", log.size)
		file := b.path(name)
		l := line{
			name: fmt.Sprintf("replay of a full log of %d MiB", log.size), want: 1.5, quick: log.size == 1,
			reads: []string{file}, check: b.clean(file),
			make:   b.once(name, func(path string) error { return makeDirty(path, log.size*mib, log.pages) }),
			ours:   b.ours("check", "-q", "-r", "all", file),
			theirs: theirs("check", "-q", "-f", "vhdx", "-r", "all", file),
		}
		again := func(context.Context) error { return restore(file) }
		l.ours.setup, l.theirs.setup = again, again
		all = append(all, l)
	}
	return all
}
