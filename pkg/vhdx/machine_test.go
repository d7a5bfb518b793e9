package vhdx_test

import (
	"errors"
	"fmt"
	"maps"
	"testing"

	"pgregory.net/rapid"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

// machine is an image under rapid's hand, beside the byte model: rapid chooses
// what is done, and makes a failure small.
type machine struct {
	*run
	family *family
}

// machineActions are what may be done, by name. Each judges its own outcome;
// the machine compares the whole disk after it.
var machineActions = map[string]func(*machine, *rapid.T) error{
	"write":   func(m *machine, t *rapid.T) error { return m.write(m.draw(t)) },
	"zero":    func(m *machine, t *rapid.T) error { return m.zeroDrawn(t, m.im.WriteZeroes) },
	"discard": func(m *machine, t *rapid.T) error { return m.zeroDrawn(t, m.im.Discard) },
	"trim":    func(m *machine, t *rapid.T) error { return m.discardBlock(m.drawBlock(t)) },
	"read":    (*machine).readDrawn,
	"flush":   func(m *machine, _ *rapid.T) error { return m.flush() },
	"grow": func(m *machine, t *rapid.T) error {
		return m.growTo(m.im.Size() + m.sectors(t, 3*mib, "by")*int64(m.im.LogicalSectorSize()))
	},
	"shrink":  (*machine).shrinkDrawn,
	"compact": (*machine).compactDrawn,
	"reopen":  func(m *machine, _ *rapid.T) error { return m.reopen() },
	"kill":    (*machine).killed,
	"cut":     (*machine).cutDrawn,
}

// chainActions are what some machines do besides.
var chainActions = map[string]func(*machine, *rapid.T) error{
	"rotate":   (*machine).rotateDrawn,
	"child":    (*machine).childDrawn,
	"merge":    (*machine).mergeDrawn,
	"collapse": (*machine).collapseDrawn,
	"replace":  (*machine).replaceDrawn,
}

// TestMachine plays reads, writes, zeroes, discards, flushes, sizes,
// compactions, reopens, deaths of the process and power cuts against the byte
// model, on images of any kind, alone and as heads of chains, which it rotates,
// merges and collapses.
func TestMachine(t *testing.T) {
	skipSlowRace(t)
	rapid.Check(t, func(t *rapid.T) {
		m := newMachine(t)
		actions := map[string]func(*rapid.T){"": func(t *rapid.T) {
			m.must(t, m.checkLive())
		}}
		all := maps.Clone(machineActions)
		if rapid.IntRange(0, 2).Draw(t, "alone") == 0 {
			maps.Copy(all, chainActions)
		}
		for name, do := range all {
			actions[name] = func(t *rapid.T) {
				err := do(m, t)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				m.im.Idle()
			}
		}
		t.Repeat(actions)
		m.must(t, m.im.Close())
		m.must(t, m.session.checkClosed(m.file))
	})
}

func (m *machine) must(t *rapid.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newMachine(t *rapid.T) *machine {
	o := vhdx.CreateOptions{
		BlockSize:         rapid.SampledFrom([]int64{mib, 2 * mib}).Draw(t, "block size"),
		LogicalSectorSize: rapid.SampledFrom([]int{512, 4096}).Draw(t, "sector size"),
		Fixed:             rapid.IntRange(0, 4).Draw(t, "fixed") == 0,
	}
	o.Size = rapid.Int64Range(1, 10*mib/4096).Draw(t, "size in pages") * 4096
	kind := &workload{
		name: "machine", create: o, growth: rapid.SampledFrom([]int64{mib, 8 * mib}).Draw(t, "growth"),
		journal: rapid.Bool().Draw(t, "journal"),
	}
	h := newHarness(1, newVisits())
	h.opts.GrowthStep = kind.growth
	h.look = func(*vhdxtest.Snapshot) {} // no cuts but those that are drawn
	m := &machine{run: &run{h: h, kind: kind, file: vhdxtest.NewFile("machine.vhdx")}}
	m.family = newFamily(m.file, o.BlockSize)
	h.opts.Parents = m.family.files
	m.seed(1)
	_, err := vhdx.CreateOn(m.file, o)
	m.must(t, err)
	m.session, err = newSession(m.file.Clone(), vhdxtest.NewModel(1, o.Size), vhdxtest.NewObserved(o.Size))
	m.must(t, err)
	m.session.geometry = geometry{blockSize: o.BlockSize}
	m.must(t, m.open(nil))
	return m
}

// sectors draws a number of sectors that is worth up to so many bytes.
func (m *machine) sectors(t *rapid.T, bytes int64, what string) int64 {
	return rapid.Int64Range(1, max(1, bytes/int64(m.im.LogicalSectorSize()))).Draw(t, what)
}

// draw chooses a range; small numbers, which rapid prefers, lie at the edges
// of blocks.
func (m *machine) draw(t *rapid.T) vhdxtest.Extent {
	lss, size := int64(m.im.LogicalSectorSize()), m.im.Size()
	off := m.drawBlock(t) + rapid.Int64Range(-4, m.session.blockSize/lss-1).Draw(t, "sector")*lss
	off = min(max(0, off), size-lss)
	n := m.sectors(t, rapid.SampledFrom([]int64{4 * kib, 64 * kib, 3 * mib}).Draw(t, "at most"), "sectors") * lss
	return vhdxtest.Extent{Off: off, N: min(n, size-off)}
}

// drawBlock chooses a block by its first byte.
func (m *machine) drawBlock(t *rapid.T) int64 {
	bs := m.session.blockSize
	return rapid.Int64Range(0, (m.im.Size()-1)/bs).Draw(t, "block") * bs
}

func (m *machine) zeroDrawn(t *rapid.T, do func(off, n int64) error) error {
	e := m.draw(t)
	c := m.model().Zero(e.Off, e.N)
	err := do(e.Off, e.N)
	c.Done(err)
	return err
}

func (m *machine) readDrawn(t *rapid.T) error {
	e := m.draw(t)
	p := make([]byte, e.N)
	if _, err := m.im.ReadAt(p, e.Off); err != nil {
		return err
	}
	return m.session.checkLive(p, e.Off)
}

func (m *machine) shrinkDrawn(t *rapid.T) error {
	lss := int64(m.im.LogicalSectorSize())
	size := max(lss, m.im.Size()-m.sectors(t, m.im.Size(), "by")*lss)
	return m.shrinkTo(size)
}

func (m *machine) compactDrawn(t *rapid.T) error {
	err := m.compactUntil(rapid.Int64Range(0, 40).Draw(t, "until") * mib)
	if errors.Is(err, vhdx.ErrInvalid) && m.kind.create.Fixed {
		return nil
	}
	return err
}

// killed ends the process, which leaves another file of the same name.
func (m *machine) killed(*rapid.T) error {
	err := m.kill()
	m.family.files[m.family.name(0)] = m.file
	return err
}

// cutDrawn cuts the power and goes on with what is left.
func (m *machine) cutDrawn(t *rapid.T) error {
	snap := m.file.Snapshot()
	plan := snap.Plan(rapid.Uint64Range(1, 1000).Draw(t, "seed"), rapid.IntRange(0, 20).Draw(t, "plan"))
	image := snap.Image(plan)
	_ = m.im.Close() // of the machine that lost its power
	_ = m.file.Close()
	before := m.session
	m.file = image
	m.family.files[m.family.name(0)] = image
	start := image.Clone() // the open may replay it
	if err := m.open(nil); err != nil {
		return fmt.Errorf("open what %s left: %w", plan.Name, err)
	}
	seen, _, err := observe(m.im, before.model, before.model.Touched(readSize))
	if err != nil {
		return fmt.Errorf("what %s left: %w", plan.Name, err)
	}
	if m.session, err = newSession(start, before.model.After(seen), seen); err != nil {
		return err
	}
	m.session.journal, m.session.geometry = before.journal, before.geometry
	m.session.killed = true // its tail is cut by the next session that writes
	return nil
}
