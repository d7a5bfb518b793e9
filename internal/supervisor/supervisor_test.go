package supervisor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// I-SUP-2, I-SUP-4: a client that connects in the gap is served by the next worker.
func TestKilledWorkerIsReplaced(t *testing.T) {
	v := start(t, setup{})
	last := v.pid()
	for i := range 20 {
		if err := unix.Kill(last, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		var now int
		for now = last; now == last; { // the dying one may still answer
			if s := v.ask("pid"); s != "" {
				_, _ = fmt.Sscan(s, &now)
			}
		}
		r := v.restart()
		if r.Worker != i+1 || r.PID != last || r.Cause != "signal: killed" || r.Failed || r.Wait != 0 || r.Culprits != nil {
			t.Fatalf("restart %d: %+v", i, r)
		}
		last = now
	}
}

// failUntil has workers fail until a gap is as long.
func (v *supervised) failUntil(gap time.Duration) {
	v.t.Helper()
	for v.ask("pid") == "" || v.ask("exit 7") != "" || v.restart().Wait < gap {
	}
}

// I-SUP-4
func TestClientWaitsInTheGap(t *testing.T) {
	v := start(t, setup{})
	v.failUntil(100 * time.Millisecond)
	if out := v.ask("pid"); out == "" {
		t.Fatal("a client was not served")
	}
}

// Silence is death, and a stopped process is silent.
func TestHang(t *testing.T) {
	v := start(t, setup{Heartbeat: 400 * time.Millisecond})
	for _, how := range []string{"hang", "sigstop"} {
		pid := v.pid()
		c := v.connect()
		defer c.Close()
		_, _ = fmt.Fprintln(c, how)
		r := v.restart()
		if r.PID != pid || !strings.HasPrefix(r.Cause, "no heartbeat for") || !r.Failed {
			t.Fatalf("%s: %+v", how, r)
		}
		gone(t, pid)
		if v.pid() == pid {
			t.Fatal("still served by the one that hangs")
		}
	}
}

// A hang is what kills: it gives strikes, too.
func TestHangIsBlamed(t *testing.T) {
	v := start(t, setup{Heartbeat: 300 * time.Millisecond})
	v.ask("blame vol-a")
	v.ask("accuse vol-b")
	v.ask("hang")
	if r := v.restart(); !cmp.Equal(r.Culprits, []string{"vol-b"}) {
		t.Fatalf("%+v", r)
	}
}

// I-SUP-2: a zombie whose leader has ended is not waited for.
func TestLeaderEnded(t *testing.T) {
	if leaderEnded(unix.Getpid()) {
		t.Fatal("this process lives")
	}
	v := start(t, setup{})
	pid := v.pid()
	if leaderEnded(pid) {
		t.Fatal("the worker lives")
	}
	if err := unix.Kill(v.Process.Pid, unix.SIGKILL); err != nil { // its worker dies with it (I-SUP-1)
		t.Fatal(err)
	}
	gone(t, pid)
	if !leaderEnded(v.Process.Pid) { // a zombie: nobody has waited
		t.Fatal("a zombie counts as alive")
	}
}

func TestBackoff(t *testing.T) {
	var got []time.Duration
	for n := range 8 {
		got = append(got, backoff(n))
	}
	ms := time.Millisecond
	want := []time.Duration{0, 0, 10 * ms, 100 * ms, 1000 * ms, 5000 * ms, 5000 * ms, 5000 * ms}
	if d := cmp.Diff(want, got); d != "" {
		t.Fatal(d)
	}
}

func TestBackoffOfAFailingWorker(t *testing.T) {
	v := start(t, setup{Settle: time.Hour}) // on a busy machine failing takes its time, too
	v.pid()
	v.plans("exit 3") // from now on none becomes ready
	v.ask("exit 0")
	var waits []time.Duration
	for range 4 {
		r := v.restart()
		if !r.Failed {
			t.Fatalf("%+v", r)
		}
		waits = append(waits, r.Wait)
	}
	ms := time.Millisecond
	if d := cmp.Diff([]time.Duration{0, 10 * ms, 100 * ms, 1000 * ms}, waits); d != "" {
		t.Fatal(d)
	}
}

// A worker that has lived for a while is one that works: what was before it is
// forgotten.
func TestBackoffIsForgotten(t *testing.T) {
	const settle = 300 * time.Millisecond
	v := start(t, setup{Settle: settle})
	v.pid()
	v.plans("exit 3")
	v.ask("exit 0")
	v.restart()
	v.restart()
	v.plans() // and now one becomes ready
	v.pid()
	time.Sleep(3 * settle)
	v.ask("exit 0")
	if r := v.restart(); r.Wait != 0 {
		t.Fatalf("%+v", r)
	}
}

// Workers that are killed before they are ready have not failed: their volumes
// do not wait longer each time.
func TestKilledBeforeReady(t *testing.T) {
	v := start(t, setup{})
	v.pid()
	v.plans("kill")
	v.ask("kill")
	var waits []time.Duration
	for range 7 {
		r := v.restart()
		if r.Failed {
			t.Fatalf("%+v", r)
		}
		waits = append(waits, r.Wait)
	}
	if d := cmp.Diff(append([]time.Duration{0}, slices.Repeat([]time.Duration{unreadyWait}, 6)...), waits); d != "" {
		t.Fatal(d)
	}
}

// One that was started wrongly says so and is not tried again.
func TestFirstWorkerFails(t *testing.T) {
	v := start(t, setup{}, "exit 64")
	if code := v.code(); code != 64 {
		t.Fatalf("exit code %d", code)
	}
}

// Unless it blames something: the other volumes are to come up.
func TestSickImageAtTheFirstStart(t *testing.T) {
	v := start(t, setup{}, "resume bad a b c")
	for range 3 {
		v.restart()
	}
	if got := v.ask("quarantined"); got != "bad" {
		t.Fatalf("quarantined %q", got)
	}
}

// I-SUP-5: of many resumed at once, two of them sick, only these end in quarantine.
func TestQuarantine(t *testing.T) {
	v := start(t, setup{})
	v.pid()
	v.plans("resume a b bad1 c d bad2 e")
	v.ask("exit 1")
	if r := v.restart(); r.Culprits != nil {
		t.Fatalf("nothing was blamed: %+v", r)
	}
	var last Restart
	n := 0
	for ; len(last.Quarantined) < 2; n++ {
		last = v.restart()
		if n > 0 && len(last.Culprits) != 1 {
			t.Fatalf("restart %d: a suspect was not alone: %+v", n, last)
		}
	}
	if d := cmp.Diff([]string{"bad1", "bad2"}, last.Quarantined); d != "" {
		t.Fatal(d)
	}
	if n > 5 {
		t.Fatalf("%d deaths", n)
	}
	if got := strings.Split(v.ask("quarantined"), ","); !slices.Contains(got, "bad1") || !slices.Contains(got, "bad2") || len(got) != 2 {
		t.Fatalf("the worker hears of %q", got)
	}
	// Nobody's fault: a kill from outside.
	v.ask("blame a")
	v.ask("kill")
	if r := v.restart(); r.Culprits != nil || r.Failed {
		t.Fatalf("%+v", r)
	}
	// The way out.
	v.pid()
	v.plans()
	if err := v.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	for range 500 {
		if v.ask("quarantined") == "" {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("SIGHUP does not end a quarantine")
}

func TestStrikesAreForgotten(t *testing.T) {
	v := start(t, setup{Settle: 300 * time.Millisecond})
	for range 4 {
		v.pid()
		time.Sleep(500 * time.Millisecond) // it settles
		v.ask("blame vol")
		v.ask("exit 2")
		if r := v.restart(); !cmp.Equal(r.Culprits, []string{"vol"}) || len(r.Quarantined) > 0 {
			t.Fatalf("%+v", r)
		}
	}
}

func TestReleasedIsNotBlamed(t *testing.T) {
	v := start(t, setup{})
	v.ask("blame vol")
	v.ask("release")
	v.ask("exit 2")
	if r := v.restart(); r.Culprits != nil {
		t.Fatalf("%+v", r)
	}
}

func TestSignals(t *testing.T) {
	t.Run("the worker's exit code", func(t *testing.T) {
		v := start(t, setup{})
		pid := v.pid()
		signalTo(t, v, syscall.SIGTERM) // Go's default: death by the signal
		if code := v.code(); code != 128+int(syscall.SIGTERM) {
			t.Fatalf("exit code %d", code)
		}
		gone(t, pid)
	})
	t.Run("grace", func(t *testing.T) {
		v := start(t, setup{Grace: 300 * time.Millisecond})
		v.ask("deaf")
		pid := v.pid()
		signalTo(t, v, syscall.SIGTERM)
		v.line("note: worker")
		if code := v.code(); code != 137 {
			t.Fatalf("exit code %d", code)
		}
		gone(t, pid)
	})
	t.Run("impatience", func(t *testing.T) {
		v := start(t, setup{})
		v.ask("deaf")
		signalTo(t, v, syscall.SIGTERM)
		time.Sleep(100 * time.Millisecond) // else they may arrive in any order
		signalTo(t, v, syscall.SIGINT)     // is passed on, and not ignored
		if code := v.code(); code != 128+int(syscall.SIGINT) {
			t.Fatalf("exit code %d", code)
		}
	})
	t.Run("in a gap", func(t *testing.T) {
		v := start(t, setup{})
		v.failUntil(time.Second)
		signalTo(t, v, syscall.SIGTERM)
		if code := v.code(); code != 0 {
			t.Fatalf("exit code %d", code)
		}
	})
}

func signalTo(t *testing.T, v *supervised, s syscall.Signal) {
	t.Helper()
	if err := v.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

func TestWorkersInheritance(t *testing.T) {
	v := start(t, setup{})
	if out := v.ask("env"); out != "" {
		t.Fatalf("children of the worker would think they are workers: %q", out)
	}
	t.Log("PR_GET_IO_FLUSHER:", v.ask("flusher"))
}

func TestNotSupervised(t *testing.T) {
	l, err := Worker()
	if !errors.Is(err, ErrNotSupervised) || l != nil {
		t.Fatal(l, err)
	}
	l.Beat()
	l.Ready()
	l.Accuse("x")
	release, err := l.Blame(t.Context(), "x")
	if err != nil || l.Quarantined() != nil {
		t.Fatal(err)
	}
	release()
	if _, err := l.Listener(); !errors.Is(err, ErrNoListener) {
		t.Fatal(err)
	}
	t.Setenv(envName, "x")
	if _, err := Worker(); err == nil {
		t.Fatal("a worker without descriptors")
	}
}

// link makes a worker's half without a process.
func link(t *testing.T, marks map[string]uint32) *Link {
	t.Helper()
	p, f, err := newPage(time.Second, marks, History{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	q, err := openPage(f)
	if err != nil {
		t.Fatal(err)
	}
	p.close()
	t.Cleanup(q.close)
	return &Link{page: q, released: make(chan struct{})}
}

func TestBlame(t *testing.T) {
	l := link(t, map[string]uint32{"suspect": 1, "gone": 3})
	a, err := l.Blame(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Blame(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	if got := l.page.culprits(); !cmp.Equal(got, []string{"a", "b"}) {
		t.Fatal(got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := l.Blame(ctx, "suspect"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a suspect is not alone: %v", err)
	}
	a()
	a() // once is enough
	b()
	s, err := l.Blame(t.Context(), "suspect")
	if err != nil {
		t.Fatal(err)
	}
	if got := l.page.culprits(); !cmp.Equal(got, []string{"suspect"}) {
		t.Fatal(got)
	}
	waited := make(chan func())
	go func() {
		r, err := l.Blame(context.Background(), "a")
		if err != nil {
			t.Error(err)
		}
		waited <- r
	}()
	select {
	case <-waited:
		t.Fatal("somebody works beside a suspect")
	case <-time.After(20 * time.Millisecond):
	}
	s()
	(<-waited)()
	if got := l.page.culprits(); got != nil {
		t.Fatal(got)
	}
	if got := l.Quarantined(); !cmp.Equal(got, []string{"gone"}) {
		t.Fatal(got)
	}
	for _, id := range []string{"", strings.Repeat("x", maxID+1)} {
		if _, err := l.Blame(t.Context(), id); err == nil {
			t.Fatalf("blamed %q", id)
		}
	}
}

// More than there are slots for wait for one.
func TestBlameManyAtOnce(t *testing.T) {
	l := link(t, nil)
	done := make(chan error)
	for i := range 1000 {
		go func() {
			release, err := l.Blame(context.Background(), fmt.Sprint("vol-", i))
			if err == nil {
				release()
			}
			done <- err
		}()
	}
	for range 1000 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if got := l.page.culprits(); got != nil {
		t.Fatal(got)
	}
}

// I-SUP-6
func FuzzPage(f *testing.F) {
	f.Add([]byte{2, 0, 0, 0, 3, 0, 0, 0, 'v', 'o', 'l'})
	f.Fuzz(func(_ *testing.T, b []byte) {
		p := make(page, pageSize)
		for off := offBeats; off < pageSize && len(b) > 0; off += len(b) {
			copy(p[off:], b)
		}
		for _, id := range p.culprits() {
			p.strikes(id)
		}
		p.marked(func(int, string, uint32) {})
		p.history()
	})
}

func TestStrikesAreBounded(t *testing.T) {
	s := &supervisor{strikes: map[string]uint32{"old": 2}}
	for i := range 10 * maxMarks {
		s.strike([]string{fmt.Sprint(i)})
	}
	if len(s.strikes) != maxMarks || s.strikes["old"] != 2 {
		t.Fatalf("%d ids, %d", len(s.strikes), s.strikes["old"])
	}
}

// BenchmarkRestart measures from kill -9 to the successor's first answer.
func BenchmarkRestart(b *testing.B) {
	v := start(b, setup{})
	var took []time.Duration
	for b.Loop() {
		c := v.connect()
		r := bufio.NewReader(c)
		_, _ = fmt.Fprintln(c, "pid")
		line, err := r.ReadString('\n')
		if err != nil {
			b.Fatal(err)
		}
		var pid int
		_, _ = fmt.Sscan(line, &pid)
		began := time.Now()
		_ = unix.Kill(pid, unix.SIGKILL)
		_, _ = r.ReadString('\n') // it is dead
		_ = c.Close()
		c = v.connect()
		_, _ = fmt.Fprintln(c, "pid")
		if _, err := bufio.NewReader(c).ReadString('\n'); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(began))
		_ = c.Close()
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
}

// As PID 1 it collects orphans, and passes on what the worker ends with.
func TestPID1(t *testing.T) {
	if _, err := exec.LookPath("unshare"); err != nil {
		t.Skip("needs unshare(1) of util-linux")
	}
	v := start(t, setup{pid1: true})
	first := v.pid() // in its namespace
	orphan := v.ask("orphan")
	v.ask("kill")
	if r := v.restart(); r.PID != first || r.Cause != "signal: killed" {
		t.Fatalf("%+v", r)
	}
	var out string
	for range 500 {
		if out = v.ask("exists " + orphan); out == unix.ESRCH.Error() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("orphan %s is left: %s", orphan, out)
}
