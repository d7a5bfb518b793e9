package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// lines are all there is to measure.
func (b *bench) lines() []line {
	var all []line
	for _, part := range []func() []line{b.creating, b.converting, b.checking, b.writing, b.replaying, b.layering} {
		all = append(all, part()...)
	}
	return all
}

func (b *bench) ours(args ...string) side { return side{args: append([]string{b.o.vhdxctl}, args...)} }

func theirs(args ...string) *side { return &side{args: append([]string{"qemu-img"}, args...)} }

// scale chooses a size: the real one, or one to try with.
func scale[T any](b *bench, real, quick T) T {
	if b.o.quick {
		return quick
	}
	return real
}

func (b *bench) creating() []line {
	out := b.path("new.vhdx")
	fixed := func() *side {
		return theirs("create", "-q", "-f", "vhdx", "-o", "subformat=fixed,block_state_zero=off", out, "10G")
	}
	all := []line{
		{
			name: "create dynamic, 10 GiB", want: 1,
			ours:   b.ours("create", out, "10G"),
			theirs: theirs("create", "-q", "-f", "vhdx", out, "10G"),
		},
		{
			name: "create fixed, 10 GiB, space taken (qemu-img, then fallocate)", want: 1.5,
			ours:   b.ours("create", "--fixed", "-q", out, "10G"),
			theirs: fixed(),
		},
		{
			name: "create fixed, 10 GiB; qemu-img takes no space", // not the same thing: no target
			ours: b.ours("create", "--fixed", "-q", out, "10G"), theirs: fixed(),
		},
	}
	all[1].theirs.then = func() error { return allocateFile(out) }
	for i := range all {
		all[i].quick, all[i].writes, all[i].theirs.unsynced = true, out, true
		all[i].check = b.clean(out)
	}
	return all
}

// allocateFile gives a sparse file all its space.
func allocateFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil {
		err = unix.Fallocate(int(f.Fd()), 0, 0, st.Size())
	}
	return errors.Join(err, f.Close())
}

// clean asks qemu-img about an image that was written.
func (b *bench) clean(path string) func(context.Context) error {
	return func(ctx context.Context) error {
		return command(ctx, "qemu-img", "check", "-q", "-f", "vhdx", path)
	}
}

// sameAs also compares it with its source, where that takes little.
func (b *bench) sameAs(source, target string) func(context.Context) error {
	return func(ctx context.Context) error {
		if filepath.Ext(target) == ".vhdx" {
			if err := b.clean(target)(ctx); err != nil {
				return err
			}
		}
		if !b.o.quick {
			return nil
		}
		return command(ctx, "qemu-img", "compare", "-q", source, target)
	}
}

const patience = 60 * time.Second // with qemu-img on 1 TiB

func (b *bench) converting() []line {
	tenGiB, tiB := scale(b, int64(10)<<30, int64(96)<<20), scale(b, int64(1)<<40, int64(1)<<30)
	var all []line
	for _, disk := range []struct {
		name, file string
		size, full int64
		huge       bool
	}{
		{scale(b, "10 GiB, a third full", "96 MiB, a third full"), "third", tenGiB, tenGiB / 3 / mib * mib, false},
		{scale(b, "1 TiB, nearly empty", "1 GiB, nearly empty"), "huge", tiB, scale(b, int64(256), 8) << 20, true},
	} {
		raw, image := b.path(disk.file+".raw"), b.path(disk.file+".vhdx")
		makeRaw := b.once(disk.file+".raw", func(path string) error { return makeRaw(path, disk.size, disk.full) })
		makeImage := func(ctx context.Context) error {
			if err := makeRaw(ctx); err != nil {
				return err
			}
			return b.once(disk.file+".vhdx", func(path string) error {
				return command(ctx, b.o.vhdxctl, "convert", "-q", raw, path)
			})(ctx)
		}
		for _, way := range []struct {
			name, from, to, format string
			make                   func(context.Context) error
		}{
			{"raw to VHDX", raw, b.path("out.vhdx"), "vhdx", makeRaw},
			{"VHDX to raw", image, b.path("out.raw"), "raw", makeImage},
			{"VHDX to VHDX", image, b.path("out.vhdx"), "vhdx", makeImage},
		} {
			l := line{
				name: "convert " + way.name + ", " + disk.name, want: 1.5, bytes: disk.full,
				reads: []string{way.from}, writes: way.to, make: way.make, check: b.sameAs(way.from, way.to),
				ours:   b.ours("convert", "-q", "-O", way.format, way.from, way.to),
				theirs: theirs("convert", "-O", way.format, way.from, way.to),
			}
			l.theirs.unsynced = true
			if disk.huge {
				l.rounds, l.theirs.patience = 1, patience
				all = append(all, l)
				continue
			}
			tuned := l
			tuned.name += "; qemu-img -m 16 -W -t none -T none"
			tuned.theirs = theirs("convert", "-m", "16", "-W", "-t", "none", "-T", "none", "-O", way.format, way.from, way.to)
			tuned.theirs.unsynced = true
			all = append(all, l, tuned)
		}
	}
	return all
}

func (b *bench) checking() []line {
	name, size := scale(b, "64 TiB", "1 TiB"), scale(b, int64(64)<<40, int64(1)<<40)
	full, empty := b.path("xfs/full.vhdx"), b.path("xfs/empty.vhdx")
	makeFull := b.once("xfs/full.vhdx", func(path string) error { return makeFull(path, size) })
	return []line{
		{
			name: "check " + name + ", full block table, 32 MiB blocks", want: 1, quick: true,
			reads: []string{full}, needs: b.mountXFS, make: makeFull,
			ours:   b.ours("check", full),
			theirs: theirs("check", "-f", "vhdx", full),
		},
		{
			name: "open " + name + ", full block table, 32 MiB blocks", limit: 100 * time.Millisecond, quick: true,
			reads: []string{full}, needs: b.mountXFS, make: makeFull,
			ours:   b.ours("bench", "-q", "-c", "1", "-d", "1", full),
			theirs: theirs("bench", "-f", "vhdx", "-t", "none", "-c", "1", "-d", "1", full),
		},
		{
			name: "open " + name + ", empty, 32 MiB blocks", limit: 100 * time.Millisecond, quick: true,
			reads: []string{empty}, needs: b.mountXFS,
			make: b.once("xfs/empty.vhdx", func(path string) error {
				return command(context.Background(), b.o.vhdxctl, "create", "--block-size", "32M", path, fmt.Sprint(size))
			}),
			ours:   b.ours("bench", "-q", "-c", "1", "-d", "1", empty),
			theirs: theirs("bench", "-f", "vhdx", "-t", "none", "-c", "1", "-d", "1", empty),
		},
	}
}
