package supervisor

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// roleEnv makes this test binary a supervisor or its worker; the value is a setup.
const roleEnv = "SUPERVISOR_TEST"

// setup of a supervisor under test and of its workers.
type setup struct {
	Dir                      string
	Heartbeat, Grace, Settle time.Duration
	pid1                     bool
}

func (s setup) socket() string { return filepath.Join(s.Dir, "sock") }

// plan is a file that says what a worker does before it is ready; without one
// it just comes up. Its lines: "exit 3", "ready" and what [do] knows.
func (s setup) plan() string { return filepath.Join(s.Dir, "plan") }

func TestMain(m *testing.M) {
	if v := os.Getenv(roleEnv); v != "" {
		var s setup
		if err := json.Unmarshal([]byte(v), &s); err != nil {
			panic(err)
		}
		l, err := Worker()
		switch {
		case errors.Is(err, ErrNotSupervised):
			os.Exit(s.supervise())
		case err != nil:
			panic(err)
		}
		os.Exit(s.work(l))
	}
	flag.Parse()
	if flag.Lookup("test.fuzz").Value.String() != "" {
		os.Exit(m.Run()) // the fuzzer's own goroutines may outlast it
	}
	goleak.VerifyTestMain(m)
}

// supervise is the supervisor's process. It prints each restart as JSON.
func (s setup) supervise() int {
	go func() { // it ends with the test, however that ends
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(1)
	}()
	l, err := net.Listen("unix", s.socket())
	if err != nil {
		panic(err)
	}
	o := Options{
		Heartbeat: s.Heartbeat, Grace: s.Grace, Settle: s.Settle, Listener: l,
		OnRestart: func(r Restart) {
			b, _ := json.Marshal(r)
			fmt.Println(string(b))
		},
		Note: func(text string) { fmt.Println("note:", text) },
	}
	err = Run(context.Background(), o)
	if x, ok := errors.AsType[*ExitError](err); ok {
		fmt.Println(x)
		return x.Code
	}
	if err != nil {
		panic(err)
	}
	return 0
}

// work is the worker's process.
func (s setup) work(link *Link) int {
	w := &work{link: link, beats: make(chan struct{})}
	go link.BeatWhile(context.Background(), func() bool {
		select {
		case <-w.beats:
			return false
		default:
			return true
		}
	})
	if b, err := os.ReadFile(s.plan()); err == nil {
		for line := range strings.Lines(string(b)) {
			if out := w.do(strings.TrimSpace(line)); strings.HasPrefix(out, "error") {
				fmt.Println(out)
			}
		}
	}
	link.Ready()
	l, err := link.Listener()
	if err != nil {
		panic(err)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			panic(err)
		}
		go func() {
			defer c.Close()
			r := bufio.NewReader(c)
			for {
				line, err := r.ReadString('\n')
				if err != nil {
					return
				}
				_, _ = fmt.Fprintln(c, w.do(strings.TrimSpace(line)))
			}
		}()
	}
}

type work struct {
	link  *Link
	beats chan struct{} // closed: beat no more
	free  func()
}

// do does what a line asks and returns the answer.
func (w *work) do(line string) string {
	cmd, arg, _ := strings.Cut(line, " ")
	switch cmd {
	case "pid":
		return strconv.Itoa(os.Getpid())
	case "exit":
		code, _ := strconv.Atoi(arg)
		os.Exit(code)
	case "kill":
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {}
	case "sigstop":
		_ = unix.Kill(os.Getpid(), unix.SIGSTOP)
	case "hang":
		close(w.beats)
	case "open":
		go func() { _, _ = os.Open(arg) }()
	case "ready":
		w.link.Ready()
	case "notready":
		select {}
	case "deaf":
		signal.Ignore(syscall.SIGTERM)
	case "blame":
		release, err := w.link.Blame(context.Background(), arg)
		if err != nil {
			return "error " + err.Error()
		}
		w.free = release
	case "release":
		w.free()
	case "accuse":
		w.link.Accuse(arg)
	case "quarantined":
		return strings.Join(w.link.Quarantined(), ",")
	case "resume":
		return w.resume(strings.Fields(arg))
	case "orphan": // a grandchild whose parent has ended
		b, err := exec.Command("sh", "-c", "sleep 0.1 >/dev/null & echo $!").Output()
		if err != nil {
			return err.Error()
		}
		return strings.TrimSpace(string(b))
	case "exists":
		pid, _ := strconv.Atoi(arg)
		return fmt.Sprint(unix.Kill(pid, 0))
	case "history":
		h := w.link.History()
		age := SinceBoot() - h.At
		return fmt.Sprintf("%v, %d, %v, %q, %v", h.Ends, h.Restarts(), h.Last, h.Cause, h.At > 0 && age > 0 && age < time.Hour)
	case "count":
		return fmt.Sprint(w.link.Tally(Tallies - 1).Add(1))
	case "env":
		return os.Getenv(envName)
	case "flusher":
		n, err := unix.PrctlRetInt(unix.PR_GET_IO_FLUSHER, 0, 0, 0, 0)
		return fmt.Sprint(n, err)
	}
	return "ok"
}

// resume works on all ids at once. One whose name begins with "bad" kills the
// process once all others have begun, or cannot begin before it has ended.
func (w *work) resume(ids []string) string {
	sick := w.link.Quarantined()
	done := make(chan struct{})
	n := 0
	for _, id := range ids {
		if slices.Contains(sick, id) {
			continue
		}
		n++
		go func() {
			release, err := w.link.Blame(context.Background(), id)
			if err != nil {
				panic(err)
			}
			time.Sleep(30 * time.Millisecond)
			if strings.HasPrefix(id, "bad") {
				os.Exit(2)
			}
			release()
			done <- struct{}{}
		}()
	}
	for range n {
		<-done
	}
	return "ok"
}

// supervised is a supervisor under test.
type supervised struct {
	*exec.Cmd
	setup
	t   testing.TB
	up  bool // its listener has been there
	out chan string
}

func start(t testing.TB, s setup, plan ...string) *supervised {
	t.Helper()
	if s.Dir == "" {
		s.Dir = t.TempDir()
	}
	v := &supervised{setup: s, t: t, out: make(chan string, 1000)}
	v.plans(plan...)
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	v.Cmd = exec.Command("/proc/self/exe")
	if s.pid1 {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		v.Cmd = exec.Command("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", exe)
	}
	v.Env = append(os.Environ(), roleEnv+"="+string(b))
	v.Stderr = os.Stderr
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	v.Stdout = w
	if _, err := v.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := v.Start(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	go func() {
		defer close(v.out)
		lines := bufio.NewScanner(r)
		for lines.Scan() {
			v.out <- lines.Text()
		}
		_ = r.Close()
	}()
	t.Cleanup(func() {
		_ = v.Process.Kill()
		_ = v.Wait()
		for range v.out { // ends when the last worker has ended
		}
	})
	return v
}

// plans sets what workers do before they are ready.
func (v *supervised) plans(lines ...string) {
	v.t.Helper()
	if err := os.WriteFile(v.plan(), []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		v.t.Fatal(err)
	}
}

// line waits for a line of output that begins so.
func (v *supervised) line(begin string) string {
	v.t.Helper()
	for {
		select {
		case l, ok := <-v.out:
			if strings.HasPrefix(l, begin) {
				return l
			}
			if !ok {
				v.t.Fatalf("no output begins with %q", begin)
			}
			v.t.Log(l)
		case <-time.After(time.Minute):
			v.t.Fatalf("no output begins with %q", begin)
		}
	}
}

// restart waits for the next one.
func (v *supervised) restart() Restart {
	v.t.Helper()
	var r Restart
	if err := json.Unmarshal([]byte(v.line("{")), &r); err != nil {
		v.t.Fatal(err)
	}
	return r
}

// code waits for the supervisor's end.
func (v *supervised) code() int {
	_ = v.Wait()
	return v.ProcessState.ExitCode()
}

// ask sends the worker, whichever it is, one line and returns its answer: ""
// if it died of it. It waits for a successor in a gap.
func (v *supervised) ask(line string) string {
	v.t.Helper()
	c := v.connect()
	defer c.Close()
	_, _ = fmt.Fprintln(c, line)
	b, _ := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(b)
}

func (v *supervised) connect() net.Conn {
	v.t.Helper()
	for range 1000 {
		c, err := net.Dial("unix", v.socket())
		if err == nil {
			v.up = true
			return c
		}
		if v.up { // I-SUP-4
			v.t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	v.t.Fatal("the supervisor does not listen")
	return nil
}

func (v *supervised) pid() int {
	v.t.Helper()
	n, err := strconv.Atoi(v.ask("pid"))
	if err != nil {
		v.t.Fatal(err)
	}
	return n
}

// gone waits until a process has ended.
func gone(t testing.TB, pid int) {
	t.Helper()
	for range 1000 {
		if unix.Kill(pid, 0) != nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("process %d does not end", pid)
}
