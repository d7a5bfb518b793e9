package pool

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"golang.org/x/sys/unix"
)

// call is one operation of a history, as a process wrote it down.
type call struct {
	Client     int
	Start, End int64  // CLOCK_MONOTONIC, the same for all processes
	Kind       string // create, delete, get, list
	Name       string
	Size       int64 // of a creation
	ID         string
	// Result is the id for a creation; "yes" or "no" for get; "ok" for a
	// deletion; "conflict" for a creation that does not fit.
	Result string
}

// exists is the sequential specification: what a name stands for. IDs that
// were there once must not come back.
type exists struct {
	id   string
	size int64
	gone string // ids of the past, each in slashes
}

func stepModel(state, input, output any) (bool, any) {
	s, c, result := state.(exists), input.(call), output.(string)
	switch c.Kind {
	case "create":
		switch {
		case s.id == "":
			fresh := !bytes.Contains([]byte(s.gone), []byte("/"+result+"/"))
			return result != "conflict" && fresh, exists{result, c.Size, s.gone}
		case s.size < c.Size:
			return result == "conflict", s
		}
		return result == s.id, s
	case "delete":
		if s.id == c.ID {
			return result == "ok", exists{gone: s.gone + "/" + c.ID + "/"}
		}
		return result == "ok", s
	}
	return (result == "yes") == (s.id == c.ID), s
}

// partition has the operations of each key judged for themselves.
func partition[K comparable](key func(porcupine.Operation) K) func([]porcupine.Operation) [][]porcupine.Operation {
	return func(history []porcupine.Operation) [][]porcupine.Operation {
		of := map[K][]porcupine.Operation{}
		for _, o := range history {
			of[key(o)] = append(of[key(o)], o)
		}
		return slices.Collect(maps.Values(of))
	}
}

var volumeModel = porcupine.Model{
	Partition: partition(func(o porcupine.Operation) string { return o.Input.(call).Name }),
	Init:      func() any { return exists{} },
	Step:      stepModel,
	DescribeOperation: func(in, out any) string {
		c := in.(call)
		return fmt.Sprintf("%s %s %d %s -> %s", c.Kind, c.Name, c.Size, c.ID, out)
	},
}

func monotonic() int64 {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) //nolint:errcheck // cannot fail
	return ts.Nano()
}

// client runs n random operations on few names and tells each to note.
func client(s *Set, client, n, names int, note func(call)) error {
	ctx := context.Background()
	rnd := rand.New(rand.NewPCG(uint64(client), 7))
	known := map[string][]string{} // ids by name, old ones too
	for range n {
		c := call{Client: client, Name: "vol-" + strconv.Itoa(rnd.IntN(names))}
		if ids := known[c.Name]; len(ids) > 0 && rnd.IntN(3) > 0 {
			c.ID = ids[max(0, len(ids)-1-rnd.IntN(3))]
			c.Kind = []string{"delete", "get"}[rnd.IntN(2)]
		} else {
			c.Kind, c.Size = "create", int64(1+rnd.IntN(2))<<24
		}
		c.Start = monotonic()
		if err := c.do(ctx, s); err != nil {
			return fmt.Errorf("client %d: %s %s %s: %w", client, c.Kind, c.Name, c.ID, err)
		}
		c.End = monotonic()
		if c.Kind == "create" && c.Result != "conflict" {
			known[c.Name] = append(known[c.Name], c.Result)
		}
		note(c)
	}
	return nil
}

func (c *call) do(ctx context.Context, s *Set) error {
	switch c.Kind {
	case "create":
		v, err := s.CreateVolume(ctx, Spec{Name: c.Name, Size: c.Size})
		c.Result = v.ID
		if errors.Is(err, ErrConflict) {
			c.Result, err = "conflict", nil
		}
		return err
	case "delete":
		c.Result = "ok"
		return s.DeleteVolume(ctx, c.ID)
	}
	_, err := s.Volume(ctx, c.ID)
	c.Result = "yes"
	if errors.Is(err, ErrNotFound) {
		c.Result, err = "no", nil
	}
	return err
}

const (
	envLinear    = "POOL_LINEAR_DIR"
	envLinearID  = "POOL_LINEAR_CLIENT"
	envLinearOps = "POOL_LINEAR_OPS"

	linearClients = 3 // of each process
	linearNames   = 3
)

// linearChild is one of several controllers in processes of their own.
func linearChild() int {
	if os.Getenv(envMixed) != "" {
		if err := mixedChild(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}
	first, _ := strconv.Atoi(os.Getenv(envLinearID))
	n, _ := strconv.Atoi(os.Getenv(envLinearOps))
	calls, err := controller(os.Getenv(envLinear), first, n)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	out := json.NewEncoder(os.Stdout)
	for _, c := range calls {
		if err := out.Encode(c); err != nil {
			return 1
		}
	}
	return 0
}

// controller is a pool of its own with several clients.
func controller(dir string, first, n int) ([]call, error) {
	p, err := Open(Options{Name: "p", Dir: dir, Overcommit: 1000, Holder: "controller-" + strconv.Itoa(first)})
	if err != nil {
		return nil, err
	}
	s, err := NewSet(p)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	var (
		mu    sync.Mutex
		wg    sync.WaitGroup
		calls []call
		errs  error
	)
	for i := range linearClients {
		wg.Go(func() {
			err := client(s, first+i, n, linearNames, func(c call) {
				mu.Lock()
				defer mu.Unlock()
				calls = append(calls, c)
			})
			mu.Lock()
			defer mu.Unlock()
			errs = errors.Join(errs, err)
		})
	}
	wg.Wait()
	return calls, errs
}

func judgeHistory(t *testing.T, calls []call) {
	t.Helper()
	var history []porcupine.Operation
	kinds := map[string]int{}
	for _, c := range calls {
		kinds[c.Kind]++
		history = append(history, porcupine.Operation{ClientId: c.Client, Input: c, Call: c.Start, Output: c.Result, Return: c.End})
	}
	switch porcupine.CheckOperationsTimeout(volumeModel, history, time.Minute) {
	case porcupine.Illegal:
		slices.SortFunc(calls, func(a, b call) int { return int(a.Start - b.Start) })
		t.Fatalf("I-POOL-1: not linearizable: %+v", calls)
	case porcupine.Unknown:
		t.Fatalf("the checker did not finish")
	}
	t.Logf("%d operations are linearizable: %v", len(calls), kinds)
}

// TestLinearizable: two pools in this process and two more in processes of
// their own work on the same few names.
func TestLinearizable(t *testing.T) {
	n := 120
	if testing.Short() {
		n = 30
	}
	dir := memDir(t)
	openSet(t, dir)
	var (
		mu  sync.Mutex
		wg  sync.WaitGroup
		all []call
	)
	add := func(calls []call, err error) {
		mu.Lock()
		defer mu.Unlock()
		all = append(all, calls...)
		if err != nil {
			t.Error(err)
		}
	}
	for i := range 2 {
		wg.Go(func() { add(controller(dir, i*linearClients, n)) })
		wg.Go(func() { add(spawnController(t, dir, (2+i)*linearClients, n)) })
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	judgeHistory(t, all)
	_, p := openSet(t, dir)
	audit(t, p)
}

func spawnController(t *testing.T, dir string, first, n int) ([]call, error) {
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), envLinear+"="+dir, envLinearID+"="+strconv.Itoa(first), envLinearOps+"="+strconv.Itoa(n))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, stderr.String())
	}
	var calls []call
	sc := bufio.NewScanner(bytes.NewReader(out))
	for sc.Scan() {
		var c call
		if err := json.Unmarshal(sc.Bytes(), &c); err != nil {
			return nil, err
		}
		calls = append(calls, c)
	}
	return calls, sc.Err()
}

// TestLinearizableJudge shows that the judge can say no.
func TestLinearizableJudge(t *testing.T) {
	history := func(calls ...call) (ops []porcupine.Operation) {
		for i, c := range calls {
			ops = append(ops, porcupine.Operation{Input: c, Output: c.Result, Call: int64(2 * i), Return: int64(2*i + 1)})
		}
		return ops
	}
	for name, calls := range map[string][]call{
		"two volumes of one name": {{Kind: "create", Result: "a"}, {Kind: "create", Result: "b"}},
		"late deletion hits":      {{Kind: "create", Result: "a"}, {Kind: "delete", ID: "a", Result: "ok"}, {Kind: "create", Result: "b"}, {Kind: "delete", ID: "a", Result: "ok"}, {Kind: "get", ID: "b", Result: "no"}},
		"comes back":              {{Kind: "create", Result: "a"}, {Kind: "delete", ID: "a", Result: "ok"}, {Kind: "create", Result: "a"}},
		"lost":                    {{Kind: "create", Result: "a"}, {Kind: "get", ID: "a", Result: "no"}},
	} {
		if porcupine.CheckOperations(volumeModel, history(calls...)) {
			t.Errorf("%s: judged linearizable", name)
		}
	}
}

// TestLinkDecides: two creations that do not see each other's locks still make
// one volume, and nothing is left of the other.
func TestLinkDecides(t *testing.T) {
	dir := memDir(t)
	var other *Set
	meddle := true
	s, err := func() (*Set, error) {
		p, err := open(Options{Name: "p", Dir: dir, Overcommit: 1000}, func(op, _ string) error {
			// Just before this pool's record is linked, another controller, to
			// which the lock was lost, makes the volume.
			if op == "link" && meddle && other != nil {
				meddle = false
				rival(t, other)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		return NewSet(p)
	}()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	other, _ = openSet(t, dir)
	if _, err := s.CreateVolume(t.Context(), Spec{Name: "victim", Size: gib}); err == nil {
		t.Fatal("I-POOL-1: two creations have both succeeded")
	}
	v, err := s.CreateVolume(t.Context(), Spec{Name: "victim", Size: gib})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := other.Volume(t.Context(), v.ID); err != nil || got.Image != v.Image {
		t.Fatalf("the controllers disagree: %v, %+v", err, got)
	}
	if left := files(t, s.Pools()[0]); len(left) != 2 {
		t.Fatalf("files: %v", left)
	}
}

// rival makes the record of "victim" as a creation without a lock would.
func rival(t *testing.T, s *Set) {
	t.Helper()
	p := s.Pools()[0]
	r := newRecord(p, Spec{Name: "victim", Size: gib})
	f, err := p.buildImage(r)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := p.linkRecord(r); err != nil {
		t.Fatal(err)
	}
}
