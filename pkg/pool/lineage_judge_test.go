package pool

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"
)

// TestLineageJudge shows that the judge can say no, and what it has to grant.
func TestLineageJudge(t *testing.T) {
	create := func(name, id string) act { return act{Kind: actCreate, Name: name, Size: testDisk, Result: id} }
	reserve := func(name, of, id string) act { return act{Kind: actReserve, Name: name, ID: of, Result: id} }
	restore := func(name, of, id string) act { return act{Kind: actRestore, Name: name, ID: of, Result: id} }
	on := func(kind, id, result string) act { return act{Kind: kind, ID: id, Result: result} }
	begin := []act{create("0", "a"), {Kind: actWrite, ID: "a", Tag: 7, Result: done}, reserve("0", "a", "s"), on(actCut, "s", done)}
	for name, tt := range map[string]struct {
		possible bool
		acts     []act
	}{
		"one snapshot of each name":         {false, []act{reserve("0", "a", "other")}},
		"another source":                    {false, []act{create("1", "b"), reserve("0", "b", "s")}},
		"a snapshot of nothing":             {false, []act{reserve("1", "gone", "t")}},
		"a snapshot that is lost":           {false, []act{on(actReadSnap, "s", absent)}},
		"a snapshot that is not listed":     {false, []act{{Kind: actListSnap, Name: "0", Result: absent}}},
		"a snapshot goes with its volume":   {false, []act{on(actDelete, "a", done), on(actReadSnap, "s", absent)}},
		"a snapshot that changes":           {false, []act{{Kind: actWrite, ID: "a", Tag: 8, Result: done}, on(actReadSnap, "s", "8")}},
		"a snapshot that comes back":        {false, []act{on(actUnsnap, "s", done), reserve("0", "a", "s")}},
		"a restore of something else":       {false, []act{restore("1", "s", "b"), on(actRead, "b", "0")}},
		"a restore of nothing":              {false, []act{on(actUnsnap, "s", done), {Kind: actSource, Name: "1", ID: "s", Result: "b"}}},
		"a restore over a volume":           {false, []act{restore("0", "s", "a")}},
		"a write that is lost":              {false, []act{on(actRead, "a", "0")}},
		"refused, and yet":                  {false, []act{on(actDelete, "a", refused), on(actRead, "a", absent)}},
		"all is well":                       {true, []act{on(actDelete, "a", done), restore("0", "s", "b"), on(actRead, "b", "7"), restore("0", "s", "b")}},
		"killed, and has happened":          {true, []act{on(actDelete, "a", unsure), on(actRead, "a", absent)}},
		"killed, and has not":               {true, []act{on(actDelete, "a", unsure), on(actRead, "a", "7")}},
		"killed, and undecided":             {false, []act{on(actDelete, "a", unsure), on(actRead, "a", absent), on(actRead, "a", "7")}},
		"an id that nobody was told":        {true, []act{restore("1", "s", unsure), restore("1", "s", "b"), on(actRead, "b", "7")}},
		"two for one that nobody was told":  {false, []act{restore("1", "s", unsure), restore("1", "s", "b"), restore("1", "s", "c")}},
		"killed, and the name is taken yet": {true, []act{on(actUnsnap, "s", unsure), on(actReadSnap, "s", absent), reserve("0", "a", "s")}},
	} {
		var history []porcupine.Operation
		for i, a := range append(begin[:len(begin):len(begin)], tt.acts...) {
			history = append(history, porcupine.Operation{Input: a, Output: a.Result, Call: int64(2 * i), Return: int64(2*i + 1)})
		}
		if porcupine.CheckOperations(lineageModel, history) != tt.possible {
			t.Errorf("%s: judged possible: %v", name, !tt.possible)
		}
	}
}

// TestSnapshotsOfTheDying: a snapshot is one while its volume is being deleted,
// and whoever was to end that may be dead.
func TestSnapshotsOfTheDying(t *testing.T) {
	d := newDisks(t, 1)
	v := d.create(Source{}, make([]byte, testDisk))
	d.write(v)
	a, b := d.snapshot(v), d.snapshot(v)
	d.halfDeleted(v)
	delete(d.vol, v)
	found, _, err := d.s.Snapshots(t.Context(), SnapshotFilter{}, "", 0)
	if err != nil || len(found) != 2 {
		t.Fatalf("listed: %+v, %v", found, err)
	}
	if s, err := d.s.Snapshot(t.Context(), a); err != nil || !s.Taken {
		t.Fatalf("%+v, %v", s, err)
	}
	d.verify()
	d.deleteSnapshot(a) // which ends the deletion
	d.verify()
	d.deleteSnapshot(b)
	d.tendAll()
	audit(t, d.p)
	if left := imagesLeft(t, d.p); left != 0 {
		t.Fatalf("%d images are left", left)
	}
}

// TestRestoreAgainstTheOrder: of two creations, each of what had the other's name
// before, at least one does not wait for the other.
func TestRestoreAgainstTheOrder(t *testing.T) {
	s, p := newSet(t)
	names := []string{"one", "two"}
	var snaps []string
	for _, n := range names {
		v, err := s.CreateVolume(t.Context(), small(n))
		if err != nil {
			t.Fatal(err)
		}
		snap, err := take(t.Context(), s, v.ID, "of "+n)
		if err == nil {
			err = s.DeleteVolume(t.Context(), v.ID)
		}
		if err != nil {
			t.Fatal(err)
		}
		snaps = append(snaps, snap.ID)
	}
	synctest.Test(t, func(t *testing.T) {
		gaveUp := 0
		for i, n := range names {
			other, err := p.lockVolume(t.Context(), hashOf(names[1-i])) // the other creation
			if err != nil {
				t.Fatal(err)
			}
			begun := time.Now()
			spec := small(n)
			spec.Source.Snapshot = snaps[1-i]
			_, err = s.CreateVolume(t.Context(), spec)
			if !errors.Is(err, ErrBusy) {
				t.Fatalf("%v", err)
			}
			if time.Since(begun) < maxWait/2 {
				gaveUp++
			}
			other.close()
		}
		if gaveUp != 1 {
			t.Fatalf("%d of 2 gave up before the other would", gaveUp)
		}
	})
	audit(t, p)
}
