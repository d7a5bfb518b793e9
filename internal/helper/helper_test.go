package helper_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/helper"
)

func commands() []helper.Command {
	return []helper.Command{
		{Name: "echo", Run: func(c *helper.Child) error {
			in, err := io.ReadAll(c.Stdin)
			_, _ = fmt.Fprintf(c.Stdout, "%s|%s", strings.Join(c.Args, ","), in)
			return err
		}},
		{Name: "busy", Run: func(*helper.Child) error { return fmt.Errorf("clear /dev/loop7: %w", syscall.EBUSY) }},
		{Name: "plain", Run: func(*helper.Child) error { return errors.New("no way") }},
		{Name: "sleep", Run: func(*helper.Child) error { time.Sleep(time.Hour); return nil }},
		{Name: "file", Run: func(c *helper.Child) error {
			_, err := io.Copy(c.Stdout, c.File(0))
			return err
		}},
		{Name: "fds", Run: func(c *helper.Child) error {
			ents, err := os.ReadDir("/proc/self/fd")
			for _, e := range ents {
				t, _ := os.Readlink("/proc/self/fd/" + e.Name())
				_, _ = fmt.Fprintln(c.Stdout, e.Name(), t)
			}
			return err
		}},
		// A parent that starts a sleeping child through helper and tells its pid.
		{Name: "parent", Run: func(*helper.Child) error {
			_, err := helper.Run(context.Background(), time.Hour, "sh", "-c", "echo $$ >&2; exec sleep 3600")
			return err
		}},
	}
}

func TestMain(m *testing.M) {
	helper.RunIfHelper(commands()...)
	_ = os.Setenv("HELPER_TEST_MARK", "child-dies")
	goleak.VerifyTestMain(m)
}

func TestSelf(t *testing.T) {
	out, err := helper.Call{Name: "echo", Self: true, Args: []string{"a", "b c"}, Stdin: []byte("in")}.Run(t.Context())
	if err != nil || string(out) != "a,b c|in" {
		t.Fatalf("got %q, %v", out, err)
	}
}

func TestSelfErrnoComesBack(t *testing.T) {
	_, err := helper.RunSelf(t.Context(), time.Minute, "busy")
	if !errors.Is(err, syscall.EBUSY) || !strings.Contains(err.Error(), "clear /dev/loop7") {
		t.Fatalf("got %v", err)
	}
	_, err = helper.RunSelf(t.Context(), time.Minute, "plain")
	exit, ok := errors.AsType[*helper.ExitError](err)
	if !ok || exit.Code != 1 || exit.Errno != 0 || exit.Stderr != "no way" {
		t.Fatalf("got %#v", err)
	}
}

func TestSelfUnknown(t *testing.T) {
	if _, err := helper.RunSelf(t.Context(), time.Minute, "nothing"); !errors.Is(err, helper.ErrNotWired) {
		t.Fatalf("got %v", err)
	}
}

func TestTool(t *testing.T) {
	out, err := helper.Run(t.Context(), time.Minute, "sh", "-c", "echo out; echo err >&2; exit 3")
	exit, ok := errors.AsType[*helper.ExitError](err)
	if !ok || exit.Code != 3 || exit.Stderr != "err" || string(out) != "out\n" {
		t.Fatalf("got %q, %#v", out, err)
	}
	if _, err := helper.Run(t.Context(), time.Minute, "no-such-tool-here"); err == nil {
		t.Fatal("a tool that is not there ran")
	}
}

func TestOutputIsBounded(t *testing.T) {
	out, err := helper.Run(t.Context(), time.Minute, "head", "-c", "5000000", "/dev/zero")
	if err != nil || len(out) != 1<<20 {
		t.Fatalf("got %d bytes, %v", len(out), err)
	}
}

// I-HLP-1, I-HLP-2
func TestDeadlineKillsTheGroup(t *testing.T) {
	_, err := helper.Run(t.Context(), 50*time.Millisecond, "sh", "-c", "sleep 3600 & wait")
	if !errors.Is(err, helper.ErrDeadline) || errors.Is(err, helper.ErrStuck) {
		t.Fatalf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := helper.RunSelf(ctx, time.Hour, "sleep"); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	if _, err := helper.Run(ctx, time.Hour, "true"); !errors.Is(err, context.Canceled) {
		t.Fatalf("an ended context still runs: %v", err)
	}
}

// I-HLP-4: what is held comes after the files of the call, and is a copy: a lock
// on it lives as long as the child.
func TestHold(t *testing.T) {
	f, err := os.Create(t.TempDir() + "/orphans")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("held"); err != nil {
		t.Fatal(err)
	}
	files := []*os.File{openHostname(t)}
	ctx := helper.Hold(t.Context(), f)
	out, err := helper.Call{Name: "fds", Self: true, Files: files}.Run(ctx)
	if err != nil || !strings.Contains(string(out), "3 /etc/hostname\n") || !strings.Contains(string(out), "4 "+f.Name()+"\n") {
		t.Fatalf("got %q, %v", out, err)
	}
	if len(files) != 1 {
		t.Fatal("the caller's files were changed")
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	other, err := os.Open(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	started := make(chan struct{})
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		_, err := helper.Call{Name: "sleep", Self: true, Started: func() { close(started) }}.Run(ctx)
		ended <- err
	}()
	<-started
	_ = f.Close()
	if err := syscall.Flock(int(other.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); !errors.Is(err, syscall.EWOULDBLOCK) {
		t.Fatalf("lock beside a child that holds it: %v", err)
	}
	cancel()
	<-ended
	if err := syscall.Flock(int(other.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		t.Fatalf("lock after the child: %v", err)
	}
}

func openHostname(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Open("/etc/hostname")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// I-HLP-3
func TestChildDiesWithParent(t *testing.T) {
	_, err := helper.RunSelf(t.Context(), 500*time.Millisecond, "parent")
	if !errors.Is(err, helper.ErrDeadline) {
		t.Fatalf("got %v", err)
	}
	// The grandchild is in a group of its own; only its death signal ends it.
	for range 100 {
		if !sleeperLives(t) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("the child of a killed parent still runs")
}

func sleeperLives(t *testing.T) bool {
	t.Helper()
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		if _, err := strconv.Atoi(d.Name()); err != nil {
			continue
		}
		cmdline, _ := os.ReadFile("/proc/" + d.Name() + "/cmdline")
		environ, _ := os.ReadFile("/proc/" + d.Name() + "/environ")
		if string(cmdline) == "sleep\x003600\x00" && strings.Contains(string(environ), "HELPER_TEST_MARK=child-dies") {
			return true
		}
	}
	return false
}

// I-HLP-4
func TestFiles(t *testing.T) {
	f, err := os.Open("/etc/hostname")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want, _ := os.ReadFile("/etc/hostname")
	out, err := helper.Call{Name: "file", Self: true, Files: []*os.File{f}}.Run(t.Context())
	if err != nil || string(out) != string(want) {
		t.Fatalf("got %q, %v", out, err)
	}
	out, err = helper.Call{Name: "fds", Self: true}.Run(t.Context())
	if err != nil || strings.Contains(string(out), "/etc/hostname") {
		t.Fatalf("descriptors of the child:\n%s%v", out, err)
	}
}

func BenchmarkSelf(b *testing.B) {
	for b.Loop() {
		if _, err := helper.RunSelf(b.Context(), time.Minute, "echo"); err != nil {
			b.Fatal(err)
		}
	}
}
