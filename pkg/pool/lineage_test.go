package pool

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// mixed is a controller whose callers create, snapshot, restore, write, read and
// delete what has few names. It writes down each operation before and after, so
// that what it was at is known when it is killed.
type mixed struct {
	s        *Set
	families int

	mu    sync.Mutex
	out   io.Writer // a line at a time
	key   int
	vols  map[int][]string // ids by family, old ones too
	snaps map[int][]string
}

// note writes an operation down.
func (m *mixed) note(a *act) error {
	b, err := json.Marshal(a)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	_, err = m.out.Write(append(b, '\n'))
	return err
}

// learn remembers an id, if that is what came out.
func (m *mixed) learn(a *act) {
	ids := m.vols
	switch a.Kind {
	case actReserve, actListSnap:
		ids = m.snaps
	case actCreate, actRestore, actListed:
	default:
		return
	}
	if _, err := parseID(a.Result); err != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	ids[a.Family] = append(ids[a.Family], a.Result)
}

// known is one of the newest ids, "" if there is none.
func (m *mixed) known(rnd *rand.Rand, ids map[int][]string, family int) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := ids[family]
	if len(all) == 0 {
		return ""
	}
	return all[max(0, len(all)-1-rnd.IntN(4))]
}

// caller makes n random calls.
func (m *mixed) caller(ctx context.Context, caller, n int) error {
	rnd := rand.New(rand.NewPCG(uint64(caller), 11))
	for i := range n {
		a := m.draw(rnd, caller, i)
		if err := m.run(ctx, a); err != nil {
			return err
		}
		if a.Kind != actReserve || a.Result == absent || a.Result == conflict || a.Result == unsure {
			continue
		}
		if err := m.run(ctx, &act{Caller: caller, Kind: actCut, Family: a.Family, ID: a.Result}); err != nil {
			return err
		}
	}
	return nil
}

// draw chooses a call. One for which no id is known yet is a creation.
func (m *mixed) draw(rnd *rand.Rand, caller, i int) *act {
	family := rnd.IntN(m.families)
	a := &act{Caller: caller, Family: family, Tag: caller*1000 + i + 1}
	slot := rnd.IntN(familyNames)
	v, s := m.known(rnd, m.vols, family), m.known(rnd, m.snaps, family)
	switch k := rnd.IntN(30); {
	case k < 2:
		a.Kind = []string{actListed, actListSnap}[k]
	case k < 8 && s != "":
		a.Kind, a.ID = []string{actRestore, actReadSnap}[k%2], s
	case k < 12 && s != "":
		a.Kind, a.ID = actUnsnap, s
	case k < 17 && v != "":
		a.Kind, a.ID = actReserve, v
	case k < 23 && v != "":
		a.Kind, a.ID = []string{actRead, actWrite}[k%2], v
	case k < 26 && v != "":
		a.Kind, a.ID = actDelete, v
	default:
		a.Kind, a.Size = actCreate, int64(1+rnd.IntN(2))*testDisk
	}
	a.Name = fmt.Sprintf("%d-%d", family, slot)
	return a
}

// run makes a call between two notes.
func (m *mixed) run(ctx context.Context, a *act) error {
	m.mu.Lock()
	m.key++
	a.Key = m.key
	m.mu.Unlock()
	a.Start = monotonic()
	if err := m.note(a); err != nil {
		return err
	}
	if err := m.do(ctx, a); err != nil {
		return fmt.Errorf("%+v: %w", a, err)
	}
	a.End = monotonic()
	m.learn(a)
	return m.note(a)
}

// do makes a call. Its error is one that no call may have.
func (m *mixed) do(ctx context.Context, a *act) (err error) {
	switch a.Kind {
	case actCreate, actRestore:
		spec := small(a.Name)
		spec.Size, spec.Source.Snapshot = a.Size, a.ID
		var v Volume
		v, err = m.s.CreateVolume(ctx, spec)
		a.Result = v.ID
	case actDelete:
		a.Result, err = done, m.s.DeleteVolume(ctx, a.ID)
		if err == nil {
			_, err = m.s.Tend(ctx, a.ID, Tender{})
			if errors.Is(err, ErrBusy) || errors.Is(err, ErrInUse) || errors.Is(err, ErrNotFound) {
				err = nil
			}
		}
	case actRead, actWrite:
		err = m.access(ctx, a)
	case actReserve:
		var s Snapshot
		s, err = m.s.ReserveSnapshot(ctx, SnapshotSpec{Name: a.Name, Volume: a.ID})
		a.Result = s.ID
	case actCut:
		a.Result = done
		if _, err = m.s.Cut(ctx, a.ID, Live{}); errors.Is(err, ErrNotFound) {
			a.Result = orphaned
			return nil
		}
	case actUnsnap:
		a.Result, err = done, m.s.DeleteSnapshot(ctx, a.ID)
	case actReadSnap:
		a.Result, err = m.readSnapshot(a.ID)
	default:
		err = m.list(ctx, a)
	}
	return a.fail(err)
}

// fail makes an error a result.
func (a *act) fail(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrBusy):
		a.Result = unsure
	case errors.Is(err, ErrInUse):
		a.Result = refused
	case errors.Is(err, ErrConflict):
		a.Result = conflict
	case errors.Is(err, ErrNotFound), errors.Is(err, ErrNoSnapshot):
		a.Result = absent
	default:
		return err
	}
	return nil
}

// A disk holds a tag in each 8 bytes of its first 4 KiB.

func (m *mixed) access(ctx context.Context, a *act) error {
	im, err := m.s.OpenImage(ctx, a.ID, a.Kind == actRead, vhdx.OpenOptions{})
	if err != nil {
		return err
	}
	if a.Kind == actRead {
		a.Result, err = tagOf(im)
		return errors.Join(err, im.Close())
	}
	page := bytes.Repeat(binary.LittleEndian.AppendUint64(nil, uint64(a.Tag)), 512)
	_, err = im.WriteAt(page, 0)
	a.Result = done
	return errors.Join(err, im.Close())
}

func tagOf(im io.ReaderAt) (string, error) {
	page := make([]byte, 4096)
	if _, err := im.ReadAt(page, 0); err != nil {
		return "", err
	}
	if !bytes.Equal(page, bytes.Repeat(page[:8], 512)) {
		return "torn", nil
	}
	return strconv.FormatUint(binary.LittleEndian.Uint64(page), 10), nil
}

// readSnapshot reads the layer that a snapshot is, which may be merged into
// another meanwhile.
func (m *mixed) readSnapshot(id string) (string, error) {
	p := m.s.Pools()[0]
	for try := 0; ; try++ {
		_, l, err := p.layerOf(id)
		if err != nil {
			return "", err
		}
		im, err := p.openLayer(l.Image)
		if errors.Is(err, fs.ErrNotExist) && try < 100 {
			continue
		}
		if err != nil {
			return "", err
		}
		tag, err := tagOf(im)
		return tag, errors.Join(err, im.Close())
	}
}

// list says which id the whole list has for a name.
func (m *mixed) list(ctx context.Context, a *act) error {
	ids, err := m.listed(ctx, a.Kind)
	a.Result = cmp.Or(ids[a.Name], absent)
	return err
}

// listed are the ids of all volumes, or of all snapshots, by name.
func (m *mixed) listed(ctx context.Context, kind string) (map[string]string, error) {
	ids := map[string]string{}
	for token := ""; ; {
		var vols []Volume
		var snaps []Snapshot
		var err error
		if kind == actListed {
			vols, token, err = m.s.List(ctx, token, 7)
		} else {
			snaps, token, err = m.s.Snapshots(ctx, SnapshotFilter{}, token, 7)
		}
		for _, v := range vols {
			ids[v.Name] = v.ID
		}
		for _, s := range snaps {
			ids[s.Name] = s.ID
		}
		if err != nil || token == "" {
			return ids, err
		}
	}
}

// lookAround learns what there is, and writes that down.
func (m *mixed) lookAround(ctx context.Context, caller int) error {
	for _, kind := range []string{actListed, actListSnap} {
		start := monotonic()
		ids, err := m.listed(ctx, kind)
		if err != nil {
			return err
		}
		end := monotonic()
		for family := range m.families {
			for slot := range familyNames {
				a := &act{Caller: caller, Kind: kind, Family: family, Name: fmt.Sprintf("%d-%d", family, slot), Start: start, End: end}
				a.Result = cmp.Or(ids[a.Name], absent)
				m.learn(a)
				if err := m.note(a); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

const (
	envMixed      = "POOL_MIXED_FAMILIES"
	mixedCallers  = 50 // of each of two controllers
	mixedFamilies = 40
)

// mixedChild is a controller in a process of its own, which may be killed.
func mixedChild() error {
	first, _ := strconv.Atoi(os.Getenv(envLinearID))
	n, _ := strconv.Atoi(os.Getenv(envLinearOps))
	families, err := strconv.Atoi(os.Getenv(envMixed))
	if err != nil {
		return err
	}
	p, err := Open(Options{Name: "p", Dir: os.Getenv(envLinear), Overcommit: 1000, Holder: "controller-" + strconv.Itoa(first)})
	if err != nil {
		return err
	}
	s, err := NewSet(p)
	if err != nil {
		return err
	}
	defer s.Close()
	m := newMixed(s, os.Stdout, families)
	if err := m.lookAround(context.Background(), first); err != nil {
		return err
	}
	var wg sync.WaitGroup
	failed := make([]error, mixedCallers)
	for i := range mixedCallers {
		wg.Go(func() { failed[i] = m.caller(context.Background(), first+i, n) })
	}
	wg.Wait()
	return errors.Join(failed...)
}

func newMixed(s *Set, out io.Writer, families int) *mixed {
	return &mixed{s: s, families: families, out: out, vols: map[int][]string{}, snaps: map[int][]string{}}
}

// acts reads what a controller wrote down: each operation that has ended, and
// then those that have not. progress is told how many have ended.
func acts(r io.Reader, progress func(ended int)) (ended, open []act, err error) {
	began := map[int]act{}
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		var a act
		if json.Unmarshal(sc.Bytes(), &a) != nil {
			continue // the last line, cut short
		}
		if a.End == 0 {
			began[a.Key] = a
			continue
		}
		delete(began, a.Key)
		ended = append(ended, a)
		progress(len(ended))
	}
	for _, a := range began {
		open = append(open, a)
	}
	return ended, open, sc.Err()
}
