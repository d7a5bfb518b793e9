package vhdx_test

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"pgregory.net/rapid"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

// family is the chain that a machine's image is the head of.
type family struct {
	files  memParents       // by name, the head and all below it
	names  []string         // the head last
	blocks map[string]int64 // sizes of their blocks
	made   int
}

// mostLayers keeps the machine's chains, and its reads, short.
const mostLayers = 5

func newFamily(f *vhdxtest.File, blockSize int64) *family {
	c := &family{files: memParents{}, blocks: map[string]int64{}}
	c.push(f, blockSize)
	return c
}

func (c *family) depth() int { return len(c.names) }

// name returns that of the nth image from the top.
func (c *family) name(n int) string { return c.names[len(c.names)-1-n] }

// next returns a new file, which is no part of the chain yet.
func (c *family) next() *vhdxtest.File {
	c.made++
	return vhdxtest.NewFile(fmt.Sprintf("layer-%d", c.made))
}

// replace puts a file in the place of n images, below the topmost above.
func (c *family) replace(above, n int, f *vhdxtest.File, blockSize int64) {
	at := len(c.names) - above - n
	for _, name := range c.names[at : at+n] {
		delete(c.files, name)
	}
	c.names = slices.Replace(c.names, at, at+n, f.Name())
	c.files[f.Name()], c.blocks[f.Name()] = f, blockSize
}

// push puts a file on top.
func (c *family) push(f *vhdxtest.File, blockSize int64) {
	c.names = append(c.names, f.Name())
	c.files[f.Name()], c.blocks[f.Name()] = f, blockSize
}

func (c *family) pop() {
	delete(c.files, c.name(0))
	c.names = c.names[:len(c.names)-1]
}

// childOptions draws a child of any block size.
func (m *machine) childOptions(t *rapid.T) vhdx.ChildOptions {
	return vhdx.ChildOptions{
		BlockSize:    rapid.SampledFrom([]int64{mib, 2 * mib, 4 * mib}).Draw(t, "child's block size"),
		RelativePath: m.family.name(0),
	}
}

// rotateDrawn puts a new child in the head's place while it is in use, or is
// refused it.
func (m *machine) rotateDrawn(t *rapid.T) error {
	if m.family.depth() == mostLayers {
		return nil
	}
	f, o := m.family.next(), m.childOptions(t)
	if _, err := m.im.CreateChildOn(f, o); err != nil {
		return err
	}
	start := f.Clone()
	var refuse error
	if rapid.IntRange(0, 4).Draw(t, "refuse") == 0 {
		refuse = errRecord
	}
	done := m.model().Flush()
	err := m.im.Rotate(f, func() error { return refuse })
	if refuse != nil {
		if !errors.Is(err, refuse) {
			return fmt.Errorf("a rotation that was refused answers: %w", err)
		}
		done(nil) // it has come as far as to make all of it durable
		return nil
	}
	if done(err); err != nil {
		return err
	}
	if n := m.file.Snapshot().Undecided(); n > 0 {
		return fmt.Errorf("the head that was left has %d operations that are not durable", n)
	}
	if err := checkClean(m.file.Clone()); err != nil {
		return fmt.Errorf("the head that was left: %w", err)
	}
	m.family.push(f, o.BlockSize)
	m.kind.create.BlockSize = o.BlockSize
	journal := m.session.journal
	if m.session, err = newSession(start, m.model(), vhdxtest.NewObserved(m.im.Size())); err != nil {
		return err
	}
	m.file, m.session.blockSize, m.session.journal = f, o.BlockSize, journal
	if journal != nil {
		journal.file, journal.size = f, o.BlockSize
	}
	return nil
}

// offline closes the image, does something to its chain, and opens what is the
// head then.
func (m *machine) offline(do func() error) error {
	m.leave()
	done := m.model().Flush()
	err := m.im.Close()
	if done(err); err != nil {
		return err
	}
	if err := errors.Join(m.session.checkClosed(m.file), do()); err != nil {
		return err
	}
	head := m.family.name(0)
	m.file, m.kind.create.BlockSize = m.family.files[head], m.family.blocks[head]
	m.file.Reopen()
	start := m.file.Clone() // the open may replay it
	hs, err := vhdxtest.Headers(start)
	if err != nil {
		return err
	}
	if err := m.open(nil); err != nil {
		return fmt.Errorf("open the head: %w", err)
	}
	if err := m.begin(false); err != nil {
		return err
	}
	m.session.blockSize, m.session.start, m.session.headers = m.family.blocks[head], start, hs[0]
	m.session.killed = true // its tail is cut by the next session that writes
	return nil
}

// childDrawn makes a child of any size of the closed image.
func (m *machine) childDrawn(t *rapid.T) error {
	if m.family.depth() == mostLayers {
		return nil
	}
	f, o := m.family.next(), m.childOptions(t)
	if rapid.Bool().Draw(t, "another size") {
		o.Size = rapid.Int64Range(1, 10*mib/4096).Draw(t, "size in pages") * 4096
	}
	return m.offline(func() error {
		im, err := m.openTop(0)
		if err != nil {
			return err
		}
		size := im.Size()
		_, err = im.CreateChildOn(f, o)
		if err := errors.Join(err, im.Close()); err != nil {
			return err
		}
		if o.Size != 0 && o.Size != size {
			m.model().Resize(o.Size).Done(nil)
		}
		m.family.push(f, o.BlockSize)
		return nil
	})
}

// openTop opens the nth image from the top as a reader.
func (m *machine) openTop(n int) (*vhdx.Image, error) {
	return vhdx.Open(m.family.files[m.family.name(n)].Clone(), vhdx.OpenOptions{ReadOnly: true, Parents: m.family.files})
}

// mergeDrawn merges the head into its parent, to the end, or until the power is
// cut at one of its steps.
func (m *machine) mergeDrawn(t *rapid.T) error {
	if m.family.depth() == 1 {
		return nil
	}
	cutAt, seed, plan := rapid.IntRange(-30, 60).Draw(t, "cut at"), rapid.Uint64Range(1, 1000).Draw(t, "seed"), rapid.IntRange(0, 20).Draw(t, "plan")
	keep := rapid.Bool().Draw(t, "keep the child")
	names := []string{m.family.name(0), m.family.name(1)}
	return m.offline(func() error {
		left := map[string]*vhdxtest.File{}
		steps := 0
		step := func() {
			if steps++; steps != cutAt {
				return
			}
			for _, name := range names {
				snap := m.family.files[name].Snapshot()
				left[name] = snap.Image(snap.Plan(seed, plan))
			}
		}
		var files []vhdx.File
		for _, name := range names {
			m.family.files[name].Reopen()
			files = append(files, worldFile{m.family.files[name], step})
		}
		below := memParents{}
		for _, name := range m.family.names[:m.family.depth()-2] {
			below[name] = m.family.files[name]
		}
		if err := vhdx.MergeOn(context.Background(), files[0], files[1], vhdx.MergeOptions{Parents: below, CutData: true}); err != nil {
			return err
		}
		for name, f := range left {
			m.family.files[name] = f
		}
		if len(left) == 0 && !keep {
			m.family.pop()
		}
		return nil
	})
}

// collapse makes one image of n of the chain, the topmost left out, with an
// interruption or without, and puts it in their place.
func (m *machine) collapse(t *rapid.T, above, n int) error {
	f, blockSize := m.family.next(), rapid.SampledFrom([]int64{mib, 2 * mib}).Draw(t, "block size")
	o := vhdx.CollapseOptions{Layers: n, BlockSize: blockSize}.Step(mib)
	if above+n < m.family.depth() {
		o.RelativePath = m.family.name(above + n)
	}
	left := rapid.IntRange(0, 20).Draw(t, "marks before the interruption")
	o.Progress = func(int64, int64) error {
		if left--; left == 0 {
			return errInterrupted
		}
		return nil
	}
	for {
		top, err := m.openTop(above)
		if err != nil {
			return err
		}
		f.Reopen()
		err = top.CollapseOn(context.Background(), f, o)
		if err2 := top.Close(); err2 == nil && errors.Is(err, errInterrupted) {
			continue
		} else if err := errors.Join(err, err2); err != nil {
			return err
		}
		m.family.replace(above, n, f, blockSize)
		return checkClean(f.Clone())
	}
}

// collapseDrawn puts one image in the place of the head and some below it.
func (m *machine) collapseDrawn(t *rapid.T) error {
	if m.family.depth() == 1 {
		return nil
	}
	n := rapid.IntRange(2, m.family.depth()).Draw(t, "layers")
	return m.offline(func() error { return m.collapse(t, 0, n) })
}

// replaceDrawn puts one image in the place of some below the head, which is in use.
func (m *machine) replaceDrawn(t *rapid.T) error {
	if m.family.depth() < 3 {
		return nil
	}
	n := rapid.IntRange(2, m.family.depth()-1).Draw(t, "layers")
	if err := m.collapse(t, 1, n); err != nil {
		return err
	}
	return m.im.ReplaceParent(vhdx.ParentChange{RelativePath: m.family.name(1)})
}
