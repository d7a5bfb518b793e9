package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A scenario is one mutating operation, how to prepare for it and what must
// hold once it was interrupted, the pool reopened and the operation repeated.
type scenario struct {
	name string
	long bool // it has many steps, and not every one of them is tried
	// prepare returns the id the operation works on, if any.
	prepare func(ctx context.Context, s *Set) (string, error)
	run     func(ctx context.Context, s *Set, id string) error
	// interrupted checks the state before the repetition: old or new.
	interrupted func(ctx context.Context, s *Set, id string) error
	// done checks the state after it.
	done func(ctx context.Context, s *Set, id string) error
}

// stride is which steps are tried: each so-manieth.
func (sc scenario) stride(of int) int {
	if sc.long {
		return 7 * of
	}
	return of
}

func prepareOne(ctx context.Context, s *Set) (string, error) {
	v, err := s.CreateVolume(ctx, Spec{Name: "victim", Size: gib})
	if err != nil {
		return "", err
	}
	return v.ID, s.RegisterNode(ctx, Node{ID: "n1", BootID: "b"})
}

func expectVolumes(n int) func(context.Context, *Set, string) error {
	return func(ctx context.Context, s *Set, _ string) error {
		vols, _, err := s.List(ctx, "", 0)
		if err == nil && len(vols) != n {
			err = fmt.Errorf("%d volumes, want %d", len(vols), n)
		}
		for _, v := range vols {
			if _, serr := os.Stat(v.Image); serr != nil {
				err = errors.Join(err, fmt.Errorf("I-POOL-2: %w", serr))
			}
		}
		return err
	}
}

func expectVolume(check func(Volume) bool) func(context.Context, *Set, string) error {
	return func(ctx context.Context, s *Set, id string) error {
		v, err := s.Volume(ctx, id)
		if err == nil && !check(v) {
			err = fmt.Errorf("unexpected state %+v", v)
		}
		return err
	}
}

func anything(context.Context, *Set, string) error { return nil }

var scenarios = []scenario{
	{
		name:    "create",
		prepare: func(context.Context, *Set) (string, error) { return "", nil },
		run: func(ctx context.Context, s *Set, _ string) error {
			_, err := s.CreateVolume(ctx, Spec{Name: "victim", Size: gib})
			return err
		},
		interrupted: anything,
		done:        expectVolumes(1),
	},
	{
		name:    "create fixed",
		prepare: func(context.Context, *Set) (string, error) { return "", nil },
		run: func(ctx context.Context, s *Set, _ string) error {
			_, err := s.CreateVolume(ctx, Spec{Name: "victim", Size: 8 << 20, Params: Params{Fixed: true, BlockSize: 1 << 20}})
			return err
		},
		interrupted: anything,
		done:        expectVolumes(1),
	},
	{
		name:        "delete",
		prepare:     prepareOne,
		run:         func(ctx context.Context, s *Set, id string) error { return s.DeleteVolume(ctx, id) },
		interrupted: anything,
		done:        expectVolumes(0),
	},
	{
		name:    "delete then create again",
		prepare: prepareOne,
		run: func(ctx context.Context, s *Set, id string) error {
			if err := s.DeleteVolume(ctx, id); err != nil {
				return err
			}
			_, err := s.CreateVolume(ctx, Spec{Name: "victim", Size: gib})
			return err
		},
		interrupted: anything,
		done:        expectVolumes(1), // I-POOL-6: the repeated deletion has not hit the successor
	},
	{
		name:    "resize",
		prepare: prepareOne,
		run: func(ctx context.Context, s *Set, id string) error {
			_, err := s.Resize(ctx, id, 3*gib)
			return err
		},
		interrupted: expectVolume(func(v Volume) bool { return v.Size == gib || v.Size == 3*gib }),
		done:        expectVolume(func(v Volume) bool { return v.Size == 3*gib }),
	},
	{
		name:        "attach",
		prepare:     prepareOne,
		run:         func(ctx context.Context, s *Set, id string) error { return s.Attach(ctx, id, "n1", false) },
		interrupted: expectVolume(func(v Volume) bool { return len(v.Attachments) <= 1 }),
		done:        expectVolume(func(v Volume) bool { return len(v.Attachments) == 1 }),
	},
	{
		name:    "set use",
		prepare: prepareOne,
		run:     func(ctx context.Context, s *Set, id string) error { return s.BeginFormat(ctx, id, "ext4") },
		interrupted: expectVolume(func(v Volume) bool {
			return v.Use == UseNever && v.FSType == "" || v.Use == UseFormatting && v.FSType == "ext4"
		}),
		done: expectVolume(func(v Volume) bool { return v.Use == UseFormatting && v.FSType == "ext4" }),
	},
	importScenario,
}

// The child of a crash test: it opens the pool, runs one scenario and exits
// before step number POOL_CRASH_STEP of it.
const (
	envScenario = "POOL_CRASH_SCENARIO"
	envStep     = "POOL_CRASH_STEP"
	envDir      = "POOL_CRASH_DIR"
	envID       = "POOL_CRASH_ID"

	exitCrashed = 42
)

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(envScenario) != "":
		os.Exit(crashChild())
	case os.Getenv(envLinear) != "":
		os.Exit(linearChild())
	}
	os.Exit(m.Run())
}

func crashChild() int {
	at, _ := strconv.Atoi(os.Getenv(envStep))
	n := 0
	die := func(string, string) error {
		if n++; n == at {
			os.Exit(exitCrashed)
		}
		return nil
	}
	p, err := open(Options{Name: "p", Dir: os.Getenv(envDir), Overcommit: 1000, Holder: "n1"}, die)
	if err == nil {
		var s *Set
		if s, err = NewSet(p); err == nil {
			err = runScenario(s, os.Getenv(envScenario), os.Getenv(envID))
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func runScenario(s *Set, name, id string) error {
	for _, sc := range append(scenarios, reflinkScenario) {
		if sc.name == name {
			return sc.run(context.Background(), s, id)
		}
	}
	return nil // only opening, which collects
}

// crash runs a child and reports whether it died at the step.
func crash(t *testing.T, dir, scenario, id string, step int) bool {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), envScenario+"="+scenario, envStep+"="+strconv.Itoa(step), envDir+"="+dir, envID+"="+id)
	out, err := cmd.CombinedOutput()
	if ee, ok := errors.AsType[*exec.ExitError](err); ok && ee.ExitCode() == exitCrashed {
		return true
	}
	if err != nil {
		t.Fatalf("%s, step %d: %v\n%s", scenario, step, err, out)
	}
	return false
}

// TestCrash kills a process at every step of every operation, lets a second
// one die while it cleans up, then reopens the pool, checks the invariants and
// repeats the operation.
func TestCrash(t *testing.T) {
	stride := 1
	if testing.Short() {
		stride = 7
	}
	for _, sc := range scenarios {
		t.Run(sc.name, func(t *testing.T) {
			t.Parallel()
			stride, steps := sc.stride(stride), 0
			for at := 1; crashOnce(t, sc, at); at += stride {
				steps++
			}
			t.Logf("died at %d steps", steps)
		})
	}
	t.Run("first open", func(t *testing.T) {
		t.Parallel()
		for at := 1; ; at += stride {
			dir := memDir(t)
			died := crash(t, dir, "open", "", at)
			_, p := openSet(t, dir)
			if _, err := p.recountNow(t.Context()); err != nil {
				t.Fatal(err)
			}
			audit(t, p)
			if !died {
				return
			}
		}
	})
}

func crashOnce(t *testing.T, sc scenario, at int) bool {
	t.Helper()
	ctx := t.Context()
	dir := memDir(t)
	s, _ := openSet(t, dir)
	id, err := sc.prepare(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	died := crash(t, dir, sc.name, id, at)
	if died {
		crash(t, dir, "open", "", 1+at%11)
	}
	s, p := openSet(t, dir)
	checkRecovered(t, fmt.Sprintf("step %d", at), sc, s, p, id)
	return died
}

// checkRecovered checks what must hold after an interruption, and again after
// the operation was repeated.
func checkRecovered(t *testing.T, when string, sc scenario, s *Set, p *Pool, id string) {
	t.Helper()
	ctx := t.Context()
	if _, err := p.recountNow(ctx); err != nil { // only if there is no account yet
		t.Fatalf("%s: %v", when, err)
	}
	audit(t, p)
	if err := sc.interrupted(ctx, s, id); err != nil {
		t.Fatalf("%s: interrupted: %v", when, err)
	}
	if err := sc.run(ctx, s, id); err != nil {
		t.Fatalf("%s: repeated: %v", when, err)
	}
	audit(t, p)
	if err := sc.done(ctx, s, id); err != nil {
		t.Fatalf("%s: done: %v", when, err)
	}
	ageTemp(t, p)
	if _, err := p.Collect(ctx); err != nil {
		t.Fatalf("%s: collect: %v", when, err)
	}
	vols, _, err := s.List(ctx, "", 0)
	if err != nil {
		t.Fatal(err)
	}
	want := len(vols)
	err = p.eachLineage(ctx, func(_ string, r *record, err error) error {
		if r != nil && r.Image != "" {
			want++
		}
		if r != nil {
			want += len(r.layers())
		}
		return err
	})
	left := slices.DeleteFunc(files(t, p), func(name string) bool { // who had an image open that is there yet
		image, isLease := strings.CutPrefix(strings.TrimSuffix(name, ".json"), dirLeases+"/")
		return isLease && fileExists(p, image+".vhdx")
	})
	if err != nil || len(left) != want {
		t.Fatalf("%s: %d volumes and %d files in all: %v, but the files are %v", when, len(vols), want, err, left)
	}
}

func fileExists(p *Pool, image string) bool {
	_, err := p.tree.Stat(dirImages + "/" + image)
	return err == nil
}

// ageTemp makes temporary files old enough to be collected.
func ageTemp(t *testing.T, p *Pool) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(p.tree.Name(), dirTemp, ".*"))
	if err != nil {
		t.Fatal(err)
	}
	old := unix.Timespec{Sec: 1}
	for _, n := range names {
		if err := unix.UtimesNano(n, []unix.Timespec{old, old}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFault makes every step of every operation fail, once or from then on.
func TestFault(t *testing.T) {
	stride := 1
	if testing.Short() {
		stride = 5
	}
	for _, sc := range scenarios {
		for _, fault := range []struct {
			errno   unix.Errno
			forever bool
		}{{unix.EIO, false}, {unix.EIO, true}, {unix.ENOSPC, true}} {
			t.Run(fmt.Sprintf("%s/%v/forever=%v", sc.name, fault.errno, fault.forever), func(t *testing.T) {
				at := 1
				for faultOnce(t, sc, at, fault.errno, fault.forever) {
					at += sc.stride(stride)
				}
			})
		}
	}
}

func faultOnce(t *testing.T, sc scenario, at int, errno unix.Errno, forever bool) bool {
	t.Helper()
	ctx := t.Context()
	dir := memDir(t)
	s, _ := openSet(t, dir)
	id, err := sc.prepare(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	n, armed, hit := 0, false, false
	p, err := open(Options{Name: "p", Dir: dir, Overcommit: 1000}, func(string, string) error {
		if !armed {
			return nil
		}
		if n++; n == at || forever && n > at {
			hit = true
			return errno
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if s, err = NewSet(p); err != nil {
		t.Fatal(err)
	}
	armed = true
	err = sc.run(ctx, s, id)
	switch {
	case err == nil:
	case errors.Is(err, errSuperseded) && !errors.Is(err, ErrBusy):
		t.Fatalf("step %d: an internal error got out: %v", at, err)
	case !errors.Is(err, errno):
		t.Fatalf("step %d: the cause %v is not in %v", at, errno, err)
	case errno == unix.ENOSPC && strings.HasPrefix(sc.name, "create") && !errors.Is(err, ErrNoSpace):
		t.Fatalf("step %d: a full share is not ErrNoSpace: %v", at, err)
	}
	armed = false
	s.Close()
	s, p = openSet(t, dir)
	checkRecovered(t, fmt.Sprintf("step %d (%v)", at, err), sc, s, p, id)
	s.Close()
	return hit
}
