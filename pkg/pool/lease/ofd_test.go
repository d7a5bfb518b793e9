package lease

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/fsx"
)

const image = "0b3c9a52-6ac4-4d8f-9c7e-0d3f4b0f6a11"

const envHold = "LEASE_TEST_HOLD"

// TestMain: a child takes the lease of the file it is given, says so, and keeps
// it until its standard input ends.
func TestMain(m *testing.M) {
	dir := os.Getenv(envHold)
	if dir == "" {
		os.Exit(m.Run())
	}
	l, f, err := openLease(dir, "n1")
	if err == nil {
		_, err = l.Acquire(context.Background(), image, f, Exclusive)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Fprintln(os.Stdout, "held")
	io.Copy(io.Discard, os.Stdin) //nolint:errcheck // ends when the parent does
}

func openLease(dir, node string) (*OFD, *os.File, error) {
	tree, err := fsx.OpenTree(dir, ".")
	if err != nil {
		return nil, nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "image"), os.O_RDWR|os.O_CREATE, 0o600)
	return NewOFD(tree, "leases", Self(node)), f, err
}

func newLease(t *testing.T, dir, node string) (*OFD, *os.File) {
	t.Helper()
	l, f, err := openLease(dir, node)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := l.tree.Mkdir("leases"); err != nil {
		t.Fatal(err)
	}
	return l, f
}

func again(t *testing.T, f *os.File) *os.File {
	t.Helper()
	g, err := os.OpenFile(f.Name(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

// TestExclusive is I-LEASE-1.
func TestExclusive(t *testing.T) {
	l, f := newLease(t, t.TempDir(), "n1")
	other, g := newLease(t, filepath.Dir(f.Name()), "n2")
	ctx := t.Context()
	held, err := l.Acquire(ctx, image, f, Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	if h := held.Holder(); h.Node != "n1" || h.PID != os.Getpid() || h.BootID == "" || h.Started == 0 || h.Since.IsZero() {
		t.Fatalf("holder %+v", h)
	}
	for _, m := range []Mode{Exclusive, Shared} {
		_, err := other.Acquire(ctx, image, g, m)
		he, ok := errors.AsType[*HeldError](err)
		if !ok || !errors.Is(err, ErrHeld) || he.Draining {
			t.Fatalf("mode %v: %v", m, err)
		}
		if d := cmp.Diff(held.Holder(), he.Holder); d != "" {
			t.Fatalf("another holder is named (-is +named):\n%s", d)
		}
	}
	if err := other.Claim(image, g); !errors.Is(err, ErrHeld) || !strings.Contains(err.Error(), "node n1") {
		t.Fatalf("claim: %v", err)
	}
	select {
	case <-held.Lost():
		t.Fatal("lost")
	default:
	}
	if err := held.Release(); err != nil {
		t.Fatal(err)
	}
	if err := other.Claim(image, g); err != nil {
		t.Fatal(err)
	}
	_, err = l.Acquire(ctx, image, f, Exclusive)
	if he, ok := errors.AsType[*HeldError](err); !ok || he.Holder != (Holder{}) || !strings.Contains(err.Error(), "unknown holder") {
		t.Fatalf("after a release nobody is named: %v", err)
	}
}

func TestShared(t *testing.T) {
	l, f := newLease(t, t.TempDir(), "n1")
	ctx := t.Context()
	a, err := l.Acquire(ctx, image, f, Shared)
	if err != nil {
		t.Fatal(err)
	}
	g := again(t, f)
	b, err := l.Acquire(ctx, image, g, Shared)
	if err != nil {
		t.Fatal(err)
	}
	h := again(t, f)
	if _, err := l.Acquire(ctx, image, h, Exclusive); !errors.Is(err, ErrHeld) {
		t.Fatalf("I-LEASE-1: exclusive beside shared: %v", err)
	}
	for _, x := range []Lease{a, b} {
		if err := x.Release(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.Acquire(ctx, image, h, Exclusive); err != nil {
		t.Fatal(err)
	}
}

// TestHolderRecord is I-LEASE-2: whatever the record says, the lock decides.
func TestHolderRecord(t *testing.T) {
	for name, content := range map[string]string{
		"none": "", "garbage": "{{{", "huge": strings.Repeat("x", 1<<20), "array": "[]", "long": `{"node":"` + strings.Repeat("n", 300) + `"}`,
	} {
		t.Run(name, func(t *testing.T) {
			l, f := newLease(t, t.TempDir(), "n1")
			held, err := l.Acquire(t.Context(), image, f, Exclusive)
			if err != nil {
				t.Fatal(err)
			}
			record := filepath.Join(filepath.Dir(f.Name()), l.file(image))
			if err := os.WriteFile(record, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := l.Claim(image, again(t, f)); !errors.Is(err, ErrHeld) || !strings.Contains(err.Error(), "unknown holder") {
				t.Fatalf("%v", err)
			}
			if err := held.Release(); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(record); !os.IsNotExist(err) {
				t.Fatalf("the record is left: %v", err)
			}
		})
	}
}

// TestDrain: a dead process of this node whose description lives on is waited
// for; one that is alive, or of another node, is not.
func TestDrain(t *testing.T) {
	dir := t.TempDir()
	l, f := newLease(t, dir, "n1")
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), envHold+"="+dir)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "held\n" {
		t.Fatalf("child: %q, %v", line, err)
	}
	_, err = l.Acquire(t.Context(), image, f, Exclusive)
	if he, ok := errors.AsType[*HeldError](err); !ok || he.Draining || he.Holder.PID != cmd.Process.Pid {
		t.Fatalf("a living holder: %v", err)
	}
	record, err := os.ReadFile(filepath.Join(dir, l.file(image)))
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait() //nolint:errcheck // killed

	// Its record is there, and this description stands for its unfinished I/O.
	inFlight := again(t, f)
	if err := fsx.TryLock(inFlight, fsx.Whole, true); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = l.Acquire(ctx, image, f, Exclusive)
	if he, ok := errors.AsType[*HeldError](err); !ok || !he.Draining || !strings.Contains(err.Error(), "its last I/O is not done yet") {
		t.Fatalf("a dead holder: %v", err)
	}
	elsewhere, g := newLease(t, dir, "n2")
	_, err = elsewhere.Acquire(t.Context(), image, g, Exclusive)
	if he, ok := errors.AsType[*HeldError](err); !ok || he.Draining {
		t.Fatalf("another node cannot know that it is dead: %v", err)
	}
	time.AfterFunc(50*time.Millisecond, func() { inFlight.Close() })
	held, err := l.Acquire(t.Context(), image, f, Exclusive)
	if err != nil {
		t.Fatalf("after the last I/O: %v", err)
	}
	if now, err := os.ReadFile(filepath.Join(dir, l.file(image))); err != nil || string(now) == string(record) {
		t.Fatalf("the record still names the dead: %s, %v", now, err)
	}
	if err := held.Release(); err != nil {
		t.Fatal(err)
	}
}

func TestDiedBefore(t *testing.T) {
	self := Self("n1")
	if self.diedBefore(self) {
		t.Fatal("this process is dead")
	}
	for what, c := range map[string]struct {
		change func(*Holder)
		want   bool
	}{
		"another node":      {func(h *Holder) { h.Node = "n2" }, false},
		"another boot":      {func(h *Holder) { h.BootID = "x" }, false},
		"nobody":            {func(h *Holder) { *h = Holder{} }, false},
		"another container": {func(h *Holder) { h.PIDSpace = "pid:[1]" }, true},
		"no such process":   {func(h *Holder) { h.PID = 1 << 30 }, true},
		"a reused pid":      {func(h *Holder) { h.Started++ }, true},
		"a bad pid":         {func(h *Holder) { h.PID = -1 }, true},
	} {
		h := self
		c.change(&h)
		if got := h.diedBefore(self); got != c.want {
			t.Errorf("%s: %v", what, got)
		}
	}
}

func FuzzHolder(f *testing.F) {
	f.Add([]byte(`{"node":"n1","bootId":"b","pid":1,"since":"2026-01-01T00:00:00Z"}`))
	f.Add([]byte(`{`))
	f.Fuzz(func(t *testing.T, b []byte) {
		h := decodeHolder(b)
		if len(h.Node) > 256 || h.String() == "" {
			t.Fatalf("%+v", h)
		}
		h.diedBefore(Self("n1"))
	})
}
