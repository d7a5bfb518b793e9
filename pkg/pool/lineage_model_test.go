package pool

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/anishathalye/porcupine"
)

// act is one operation of a mixed history, as a process wrote it down: when it
// began, and again when it ended.
type act struct {
	Key, Caller int
	Kind        string
	Family      int    // what it works on; no operation works on two
	Name        string // of what is created, reserved or listed; it ends with its slot
	ID          string // of what is used
	Size        int64
	Tag         int    // what is written
	Start, End  int64  // CLOCK_MONOTONIC, the same for all processes
	Result      string // an id, a tag, or one of the words below
}

// The kinds. A CSI CreateSnapshot is a reserve and a cut.
const (
	actCreate   = "create"
	actRestore  = "restore"
	actDelete   = "delete"
	actRead     = "read"
	actWrite    = "write"
	actReserve  = "reserve"
	actCut      = "cut"
	actUnsnap   = "delete snapshot"
	actReadSnap = "read snapshot"
	actListed   = "list"
	actListSnap = "list snapshots"
	// actSource is the other half of a restore: it sees the source, and then makes
	// the volume, whether or not the source is there yet.
	actSource = "source"
)

// Results beside ids and tags.
const (
	done     = "done"
	conflict = "conflict"
	absent   = "absent"   // what it is about, or the source, does not exist
	orphaned = "orphaned" // the snapshot's volume does not exist
	refused  = "refused"  // in use: nothing has happened
	unsure   = "unsure"   // ErrBusy, or killed: it may have happened
)

// someID is the id of what was made by somebody who was killed before he could
// tell.
const someID = "?"

// family is the sequential specification: the volumes and snapshots of a few
// names, with all that is made of each other.
type family struct {
	vols  [familyNames]modelVolume
	snaps [familyNames]modelSnapshot
	gone  string // ids of the past, sorted, those of snapshots with what they held
}

const familyNames = 2

type modelVolume struct {
	id, source string
	size       int64
	tag        int
}

type modelSnapshot struct {
	id, volume string
	taken      bool
	size       int64
	tag        int
}

func (a act) slot() int { return int(a.Name[len(a.Name)-1] - '0') }

func (f *family) volume(id string) *modelVolume {
	i := slices.IndexFunc(f.vols[:], func(v modelVolume) bool { return v.id != "" && v.id == id })
	if i < 0 {
		return nil
	}
	return &f.vols[i]
}

func (f *family) snapshot(id string) *modelSnapshot {
	i := slices.IndexFunc(f.snaps[:], func(s modelSnapshot) bool { return s.id != "" && s.id == id })
	if i < 0 {
		return nil
	}
	return &f.snaps[i]
}

func (f *family) bury(id string) {
	if id == someID {
		return
	}
	all := append(strings.Fields(f.gone), id)
	slices.Sort(all)
	f.gone = strings.Join(slices.Compact(all), " ")
}

func (f *family) burySnapshot(s modelSnapshot) {
	if s.taken {
		f.bury(fmt.Sprintf("%s=%d=%d", s.id, s.size, s.tag))
	} else {
		f.bury(s.id)
	}
}

// held is what a snapshot holds, or held.
func (f *family) held(id string) (all []modelVolume) {
	if s := f.snapshot(id); s != nil && s.taken {
		all = append(all, modelVolume{size: s.size, tag: s.tag})
	}
	for _, g := range strings.Fields(f.gone) {
		var v modelVolume
		if of, rest, ok := strings.Cut(g, "="); ok && of == id {
			if n, _ := fmt.Sscanf(rest, "%d=%d", &v.size, &v.tag); n == 2 {
				all = append(all, v)
			}
		}
	}
	return all
}

// fresh reports whether an id can be that of something new, or of something
// whose id nobody knows yet.
func (f *family) fresh(id string) bool {
	past := func(g string) bool { return g == id || strings.HasPrefix(g, id+"=") }
	return id == someID || f.volume(id) == nil && f.snapshot(id) == nil && !slices.ContainsFunc(strings.Fields(f.gone), past)
}

// is binds an id that was not known, and reports whether have is id.
func (f *family) is(have *string, id string) bool {
	if *have == someID && f.fresh(id) {
		*have = id
	}
	return *have == id
}

// step are the states that there may be after an operation; none: its result
// cannot be.
func (f family) step(a act, result string) []family {
	after := f
	happened := false
	switch a.Kind {
	case actCreate:
		happened = after.create(a, result, modelVolume{size: a.Size})
	case actRestore:
		return f.restore(a, result)
	case actDelete:
		happened = after.delete(a.ID, result)
	case actWrite:
		happened = after.write(a, result)
	case actReserve:
		happened = after.reserve(a, result)
	case actCut:
		happened = after.cut(a.ID, result)
	case actUnsnap:
		return f.unsnap(a.ID, result)
	default:
		happened = after.see(a, result)
	}
	switch {
	case result == refused || result == unsure && (!happened || f == after):
		return []family{f}
	case result == unsure:
		return []family{f, after}
	case happened:
		return []family{after}
	}
	return nil
}

// create reports whether the result is possible, and for one that is not sure
// whether it has an effect.
func (f *family) create(a act, result string, made modelVolume) bool {
	v := &f.vols[a.slot()]
	fits := v.id != "" && v.source == a.ID && v.size >= made.size
	switch {
	case result == conflict:
		return v.id != "" && !fits
	case v.id != "" && result != unsure:
		return fits && f.is(&v.id, result)
	case v.id != "":
		return false
	}
	made.id, made.source = result, a.ID
	if result == unsure {
		made.id = someID
	}
	if !f.fresh(made.id) {
		return false
	}
	*v = made
	return true
}

func (f family) restore(a act, result string) (all []family) {
	v, s := f.vols[a.slot()], f.snapshot(a.ID)
	there := v.id != "" && v.source == a.ID
	if result == unsure || result == refused || result == absent && !there && (s == nil || !s.taken) {
		all = append(all, f)
	}
	contents := f.held(a.ID)
	if there || result == conflict {
		contents = []modelVolume{{}}
	}
	for _, made := range contents {
		after := f
		if result != refused && result != absent && after.create(a, result, made) {
			all = append(all, after)
		}
	}
	return all
}

func (f *family) delete(id, result string) bool {
	if v := f.volume(id); v != nil {
		f.bury(id)
		*v = modelVolume{}
	}
	return result == done || result == unsure
}

func (f *family) write(a act, result string) bool {
	v := f.volume(a.ID)
	if v == nil {
		return result == absent
	}
	v.tag = a.Tag
	return result == done || result == unsure
}

func (f *family) reserve(a act, result string) bool {
	s, v := &f.snaps[a.slot()], f.volume(a.ID)
	switch {
	case result == conflict:
		return s.id != "" && s.volume != a.ID
	case result == absent:
		return v == nil && (s.id == "" || s.volume == a.ID && !s.taken)
	case s.id != "":
		return result != unsure && s.volume == a.ID && f.is(&s.id, result)
	case v == nil:
		return false
	}
	id := result
	if result == unsure {
		id = someID
	}
	if !f.fresh(id) {
		return false
	}
	*s = modelSnapshot{id: id, volume: a.ID}
	return true
}

func (f *family) cut(id, result string) bool {
	s := f.snapshot(id)
	if s == nil {
		return result == absent
	}
	v := f.volume(s.volume)
	if v == nil {
		return result == orphaned
	}
	if !s.taken {
		s.taken, s.size, s.tag = true, v.size, v.tag
	}
	return result == done || result == unsure
}

// unsnap: one that is cut short may leave the name reserved.
func (f family) unsnap(id, result string) []family {
	after, half := f, f
	s := after.snapshot(id)
	if s == nil {
		return []family{f}
	}
	after.burySnapshot(*s)
	*s = modelSnapshot{}
	switch result {
	case done:
		return []family{after}
	case refused:
		return []family{f}
	case unsure:
		s = half.snapshot(id)
		half.burySnapshot(*s)
		*s = modelSnapshot{id: s.id, volume: s.volume}
		return []family{f, half, after}
	}
	return nil
}

// see is what changes nothing.
func (f *family) see(a act, result string) bool {
	switch a.Kind {
	case actRead:
		if v := f.volume(a.ID); v != nil {
			return result == strconv.Itoa(v.tag)
		}
	case actReadSnap:
		if s := f.snapshot(a.ID); s != nil && s.taken {
			return result == strconv.Itoa(s.tag)
		}
	case actSource:
		s := f.snapshot(a.ID)
		return s != nil && s.taken || f.vols[a.slot()].source == a.ID
	case actListed:
		if v := &f.vols[a.slot()]; v.id != "" {
			return f.is(&v.id, result)
		}
	case actListSnap:
		if s := &f.snaps[a.slot()]; s.taken {
			return f.is(&s.id, result)
		}
	}
	return result == absent
}

// lineageModel judges each family for itself.
var lineageModel = func() porcupine.Model {
	m := porcupine.NondeterministicModel{
		Partition: partition(func(o porcupine.Operation) int { return o.Input.(act).Family }),
		Init:      func() []any { return []any{family{}} },
		Step: func(state, input, output any) (all []any) {
			for _, f := range state.(family).step(input.(act), output.(string)) {
				all = append(all, f)
			}
			return all
		},
		DescribeOperation: func(in, out any) string { return fmt.Sprintf("%v -> %v", in, out) },
	}
	return m.ToModel()
}()
