package pool

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// TestLineageLinearizable: two controllers of 50 callers each work on the same
// few names of volumes and snapshots, and are killed and started again. What they
// saw is linearizable, where an operation that was cut short may or may not have
// happened; what was acknowledged is there and holds what it has to; and when all
// of it is deleted nothing is left. I-POOL-1, -2, -5, -6, -7, -15, -16.
func TestLineageLinearizable(t *testing.T) {
	lives, ops := 5, 20
	if testing.Short() {
		lives, ops = 3, 10
	}
	dir := memDir(t)
	openSet(t, dir)
	var (
		mu  sync.Mutex
		wg  sync.WaitGroup
		all []act
	)
	for c := range 2 {
		wg.Go(func() {
			for life := range lives {
				killAfter := mixedCallers * ops * (life + 1) / (lives + 1)
				if life == lives-1 {
					killAfter = 0
				}
				got, err := controllerLife(t.Context(), dir, (2*life+c)*mixedCallers, ops, killAfter)
				mu.Lock()
				all = append(all, got...)
				mu.Unlock()
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	s, p := openSet(t, dir)
	all = append(all, inventory(t, s)...)
	judgeLineages(t, all)
	settle(t, s, p)
	recountFiles(t, p)
	deleteAll(t, s, p)
}

// controllerLife is one process, from its start to its end, or to its death when
// so many operations have ended. What it was at then may or may not have happened.
func controllerLife(ctx context.Context, dir string, first, ops, killAfter int) ([]act, error) {
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), envLinear+"="+dir, envLinearID+"="+strconv.Itoa(first),
		envLinearOps+"="+strconv.Itoa(ops), envMixed+"="+strconv.Itoa(mixedFamilies))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	killed := false
	ended, open, rerr := acts(out, func(n int) {
		if n == killAfter {
			killed = cmd.Process.Kill() == nil
		}
	})
	err = cmd.Wait()
	died := monotonic()
	for _, a := range open {
		a.End, a.Result = died, unsure
		ended = append(ended, a)
	}
	if rerr != nil || err != nil && !killed {
		return ended, fmt.Errorf("controller %d: %w, %w: %s", first, err, rerr, stderr.String())
	}
	return ended, nil
}

// inventory is what there is in the end: each name in the lists, and what
// everything listed holds.
func inventory(t *testing.T, s *Set) []act {
	t.Helper()
	if _, err := s.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	m := newMixed(s, &out, mixedFamilies)
	if err := m.lookAround(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	for kind, ids := range map[string]map[int][]string{actRead: m.vols, actReadSnap: m.snaps} {
		for family, all := range ids {
			for _, id := range all {
				a := &act{Kind: kind, Family: family, ID: id}
				if err := m.run(t.Context(), a); err != nil || a.Result == unsure || a.Result == refused {
					t.Fatalf("%+v: %v", a, err)
				}
			}
		}
	}
	ended, _, err := acts(&out, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	return ended
}

func lineageHistory(all []act) (history []porcupine.Operation) {
	for _, a := range all {
		reads := !slices.Contains([]string{actCreate, actRestore, actDelete, actWrite, actReserve, actCut, actUnsnap}, a.Kind)
		if a.Result == unsure && reads {
			continue // it says nothing
		}
		history = append(history, porcupine.Operation{ClientId: a.Caller, Input: a, Call: a.Start, Output: a.Result, Return: a.End})
		if _, err := parseID(a.Result); a.Kind == actRestore && err == nil {
			a.Kind = actSource
			history = append(history, porcupine.Operation{ClientId: a.Caller, Input: a, Call: a.Start, Output: a.Result, Return: a.End})
		}
	}
	return history
}

func judgeLineages(t *testing.T, all []act) {
	t.Helper()
	kinds, results := map[string]int{}, map[string]int{}
	for _, a := range all {
		kinds[a.Kind]++
		if _, err := parseID(a.Result); err != nil && a.Result != done {
			results[a.Kind+": "+a.Result[:min(len(a.Result), 8)]]++
		}
	}
	t.Logf("%d operations: %v", len(all), kinds)
	for _, r := range []string{conflict, absent, refused, unsure} {
		for _, k := range slices.Sorted(maps.Keys(kinds)) {
			if n := results[k+": "+r]; n > 0 {
				t.Logf("%s: %s %d times", k, r, n)
			}
		}
	}
	for _, part := range lineageModel.Partition(lineageHistory(all)) {
		switch porcupine.CheckOperationsTimeout(lineageModel, part, time.Minute) {
		case porcupine.Illegal:
			t.Fatalf("I-POOL-1: not linearizable:\n%s", describe(part))
		case porcupine.Unknown:
			t.Fatalf("the checker did not finish:\n%s", describe(part))
		}
	}
}

// describe marks what is in the longest history that could be.
func describe(part []porcupine.Operation) string {
	slices.SortFunc(part, func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
	_, info := porcupine.CheckOperationsVerbose(lineageModel, part, 5*time.Second)
	fits := map[int]int{}
	for _, found := range info.PartialLinearizationsOperations() {
		for _, longest := range found {
			if len(longest) <= len(fits) {
				continue
			}
			clear(fits)
			for i, o := range longest {
				fits[o.Input.(act).Tag*1000000+int(o.Call%1000000)] = i + 1
			}
		}
	}
	var b strings.Builder
	for _, o := range part {
		a := o.Input.(act)
		fmt.Fprintf(&b, "%4d %d..%d caller %d: %s %s %s %d tag %d -> %s\n", fits[a.Tag*1000000+int(o.Call%1000000)],
			o.Call-part[0].Call, o.Return-part[0].Call, a.Caller, a.Kind, a.Name, a.ID, a.Size, a.Tag, a.Result)
	}
	return b.String()
}

// settle ends what is unfinished and tends until there is nothing more to do.
func settle(t *testing.T, s *Set, p *Pool) {
	t.Helper()
	ctx := t.Context()
	ageTemp(t, p)
	if _, err := p.Collect(ctx); err != nil {
		t.Fatal(err)
	}
	for again := true; again; {
		again = false
		err := s.Untended(ctx, func(id string) error {
			done, err := s.Tend(ctx, id, Tender{})
			again = again || done.Removed > 0 || done.Rebuilt > 0 || done.Left != ""
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	audit(t, p)
}

// recountFiles holds all files of a settled pool against its records, in both
// directions.
func recountFiles(t *testing.T, p *Pool) {
	t.Helper()
	want := map[string]bool{}
	err := p.eachLineage(t.Context(), func(name string, r *record, err error) error {
		if err != nil {
			return err
		}
		want[name] = true
		for _, l := range append(r.layers(), layer{Image: r.Image}) {
			if l.Image != "" {
				want[imagePath(l.Image)] = true
			}
		}
		if r.Origin != nil {
			want[childrenDir(r.Origin.Image)+"/"+r.Origin.As] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{dirVolumes, dirRetired, dirImages, dirChildren, dirCuts, dirTemp} {
		for _, name := range filesIn(t, p, dir) {
			if !want[name] {
				t.Errorf("leaked: %s", name)
			}
			delete(want, name)
		}
	}
	for name := range want {
		t.Errorf("lost: %s", name)
	}
}

func filesIn(t *testing.T, p *Pool, dir string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(p.tree.Name(), dir), func(name string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			names = append(names, strings.TrimPrefix(name, p.tree.Name()+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// deleteAll deletes all there is, of which nothing must be left.
func deleteAll(t *testing.T, s *Set, p *Pool) {
	t.Helper()
	ctx := t.Context()
	vols, _, err := s.List(ctx, "", 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range vols {
		if err := s.DeleteVolume(ctx, v.ID); err != nil {
			t.Fatal(err)
		}
	}
	var snaps []string // those that were never taken, too
	err = p.walk(ctx, dirSnapshots, "", func(_ string, h hash, b []byte, err error) error {
		if err != nil {
			return err
		}
		r, err := decodeSnapshot(b, p.name, dirSnapshots, h)
		if err == nil {
			snaps = append(snaps, r.ID)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range snaps {
		if err := s.DeleteSnapshot(ctx, id); err != nil {
			t.Fatal(err)
		}
	}
	settle(t, s, p)
	for _, dir := range []string{dirVolumes, dirRetired, dirImages, dirChildren, dirSnapshots, dirCuts, dirLeases, dirTemp} {
		if left := filesIn(t, p, dir); len(left) > 0 {
			t.Errorf("left of nothing: %v", left)
		}
	}
}
