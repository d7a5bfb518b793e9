package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

const plainCopy = "cp"

// layering are the lines that QEMU's driver, which has no differencing images
// and no compact, cannot be measured on.
func (b *bench) layering() []line {
	depth, size := scale(b, 64, 4), scale(b, int64(512), 32)*mib
	dir, top, flat := b.path("chain"), b.path(fmt.Sprintf("chain/%d.vhdx", depth)), b.path("flat.vhdx")
	makeChain := b.once("chain", func(string) error {
		if err := makeChain(dir, depth, size); err != nil {
			return err
		}
		return command(context.Background(), b.o.vhdxctl, "convert", "-q", top, flat)
	})
	count := scale(b, "30000", "200")
	read := func(image, jobs string) side {
		s := b.ours("bench", "--json", "-q", "-c", count, "-S", randomStep, "-d", jobs, image)
		s.inside = true
		return s
	}
	plain := func(image, jobs string) side {
		return side{args: []string{b.self, plainCommand, "-count", count, "-jobs", jobs, image}, inside: true}
	}
	cp := func(from, to string) *side { return &side{args: []string{plainCopy, from, to}, unsynced: true} }
	var all []line
	for _, jobs := range []string{"1", "8"} {
		one, onePlain := read(flat, jobs), plain(flat, jobs)
		all = append(all, line{
			name: fmt.Sprintf("random 4 KiB read, jobs: %s, %d layers (against 1 layer)", jobs, depth), want: 0.9, peer: "1 layer",
			reads: []string{flat}, make: makeChain, ours: read(top, jobs), theirs: &one,
		}, line{
			name: fmt.Sprintf("the same reads by pread alone, jobs: %s, the layers' files (against 1 file)", jobs), peer: "1 file",
			reads: []string{flat}, make: makeChain, ours: plain(top, jobs), theirs: &onePlain,
		})
	}
	out := b.path("out.vhdx")
	all = append(all,
		line{
			name: fmt.Sprintf("clone of %d layers (against cp)", depth), quick: true, peer: plainCopy,
			reads: []string{flat}, writes: out, make: makeChain,
			ours: b.ours("create", "--parents", b.dir, "--parent", top, out), theirs: cp(flat, out),
		},
		line{
			name: fmt.Sprintf("%d layers made one, by convert (against cp)", depth), bytes: size, peer: plainCopy,
			reads: []string{flat}, writes: out, make: makeChain,
			ours: b.ours("convert", "-q", top, out), theirs: cp(flat, out), check: b.clean(out),
		},
		b.merging(size/2),
		b.compacting(size/2))
	return all
}

// has is for commands that may not be there.
func (b *bench) has(name string) func(context.Context) error {
	return func(ctx context.Context) error {
		if err := exec.CommandContext(ctx, b.o.vhdxctl, name, "--help").Run(); err != nil {
			return fmt.Errorf("there is no vhdxctl %s", name)
		}
		return nil
	}
}

// merging merges a child of n bytes into a parent that has them too.
func (b *bench) merging(n int64) line {
	dir, work, out := b.path("pair"), b.path("work"), b.path("out.vhdx")
	again := func(ctx context.Context) error {
		if err := os.RemoveAll(work); err != nil {
			return err
		}
		return command(ctx, "cp", "-r", dir, work)
	}
	return line{
		name: "merge a child into its parent (against cp of the child)", bytes: n, peer: plainCopy, needs: b.has("merge"), writes: out,
		reads:  []string{filepath.Join(dir, "1.vhdx")},
		make:   b.once("pair", func(path string) error { return makeChain(path, 1, n) }),
		ours:   side{setup: again, args: []string{b.o.vhdxctl, "merge", "-q", filepath.Join(work, "1.vhdx")}},
		theirs: &side{args: []string{plainCopy, filepath.Join(dir, "1.vhdx"), out}, unsynced: true},
	}
}

// compacting moves n bytes down to where as many have been discarded.
func (b *bench) compacting(n int64) line {
	loose, work, out := b.path("loose.vhdx"), b.path("work.vhdx"), b.path("out.vhdx")
	return line{
		name: "compact, half of the space free (against cp of the rest)", bytes: n, peer: plainCopy, needs: b.has("compact"), writes: out,
		reads:  []string{loose},
		make:   b.once("loose.vhdx", func(path string) error { return makeLoose(path, n) }),
		ours:   side{setup: func(ctx context.Context) error { return command(ctx, "cp", loose, work) }, args: []string{b.o.vhdxctl, "compact", "-q", work}},
		theirs: &side{args: []string{plainCopy, loose, out}, unsynced: true},
	}
}

// makeLoose makes an image of 2n bytes the first half of which was discarded.
func makeLoose(path string, n int64) error {
	if _, err := vhdx.Create(path, vhdx.CreateOptions{Size: 2 * n, BlockSize: mib}); err != nil {
		return err
	}
	im, err := vhdx.OpenPath(path, vhdx.OpenOptions{})
	if err != nil {
		return err
	}
	err = fill(im, 2*n)
	if err == nil {
		err = im.Flush()
	}
	if err == nil {
		err = im.Discard(0, n)
	}
	return errors.Join(err, im.Close())
}

// fill writes the first end bytes.
func fill(im *vhdx.Image, end int64) error {
	piece := make([]byte, mib)
	for i := range piece {
		piece[i] = byte(i>>12)*7 | 1
	}
	for off := int64(0); off < end; off += mib {
		if _, err := im.WriteAt(piece, off); err != nil {
			return err
		}
	}
	return nil
}

// makeChain makes 0.vhdx, full, and so many layers on it. A layer holds, in a
// sixteenth of the disk (all of it, if it is the only one), every other piece
// of 64 KiB: a read meets blocks that are spread over several layers.
func makeChain(dir string, depth int, size int64) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	parent := filepath.Join(dir, "0.vhdx")
	if _, err := vhdx.Create(parent, vhdx.CreateOptions{Size: size}); err != nil {
		return err
	}
	if err := edit(parent, dir, func(im *vhdx.Image) error { return fill(im, size) }); err != nil {
		return err
	}
	for n := 1; n <= depth; n++ {
		path := filepath.Join(dir, fmt.Sprintf("%d.vhdx", n))
		if _, err := vhdx.CreateChild(path, parent, vhdx.ChildOptions{}); err != nil {
			return err
		}
		part, parts := int64(n*7%16), int64(16)
		if depth == 1 {
			part, parts = 0, 1
		}
		if err := edit(path, dir, func(im *vhdx.Image) error { return speckle(im, part*size/parts, size/parts, byte(n)) }); err != nil {
			return err
		}
		parent = path
	}
	return nil
}

func edit(path, dir string, change func(*vhdx.Image) error) error {
	im, err := vhdx.OpenPath(path, vhdx.OpenOptions{Parents: vhdx.ParentsIn(dir), GrowthStep: mib})
	if err != nil {
		return err
	}
	return errors.Join(change(im), im.Close())
}

// speckle writes every other 64 KiB of a range.
func speckle(im *vhdx.Image, off, n int64, seed byte) error {
	const piece = 64 << 10
	p := make([]byte, piece)
	for i := range p {
		p[i] = seed + byte(i>>9)*5 | 1
	}
	for at := off; at < off+n; at += 2 * piece {
		if _, err := im.WriteAt(p, at); err != nil {
			return err
		}
	}
	return nil
}
