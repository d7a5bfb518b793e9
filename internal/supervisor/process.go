package supervisor

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"
)

// worker is one life of the worker process.
type worker struct {
	cmd     *exec.Cmd
	page    page
	started time.Time
	exited  chan error // gets one value when the process has been reaped
	gone    bool       // it has
	ooms    uint64     // out-of-memory kills of the machine before it started

	beats   uint64 // last seen
	silent  int    // looks since it changed
	zombie  int    // looks since its main thread has ended
	settled bool   // it has lived for Options.Settle
	left    time.Time
	// suspects are those it had worked on when its turn ended before it was
	// known how it died.
	suspects []string
	warned   bool
}

// end is how a worker's turn ended.
type end struct {
	cause  string
	exited bool // with a code of its own
	code   int
	failed bool          // by its own doing
	silent time.Duration // it was killed for that; 0: for something else, or not
}

// selfExe stays right when the program's file has been replaced.
const selfExe = "/proc/self/exe"

// The first descriptor of a child that is not a standard one.
const firstExtra = 3

// spawn starts a process on this thread.
func (s *supervisor) spawn() (*worker, error) {
	p, file, err := newPage(s.o.Heartbeat/8, s.strikes, s.past)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	for i, n := range s.tallies {
		p.tally(i).Store(n)
	}
	cmd := exec.Command(s.o.Command[0], s.o.Command[1:]...)
	if cmd.Path == selfExe {
		cmd.Args[0] = os.Args[0] // what an operator looks for in a list of processes
	}
	if cmd.Env = s.o.Env; cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{file}
	inherits := fmt.Sprint(envName, "=", firstExtra)
	if s.listener != nil {
		cmd.ExtraFiles = append(cmd.ExtraFiles, s.listener)
		inherits += fmt.Sprint(",", firstExtra+1)
	}
	cmd.Env = append(cmd.Env, inherits)
	// A group of its own: a terminal's ^C is for the supervisor, which passes it on.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	w := &worker{cmd: cmd, page: p, started: time.Now(), exited: make(chan error, 1), ooms: oomKills()}
	if err := cmd.Start(); err != nil {
		p.close()
		return nil, err
	}
	go func() { w.exited <- cmd.Wait() }()
	return w, nil
}

func (w *worker) pid() int { return w.cmd.Process.Pid }

func (w *worker) signal(sig os.Signal) { _ = w.cmd.Process.Signal(sig) } // it may have ended

// kill does not wait (I-SUP-2).
func (w *worker) kill() { w.signal(syscall.SIGKILL) }

// killed is the end of one that has been killed and may not be gone.
func killed(cause string) *end {
	return &end{cause: cause, code: 128 + int(syscall.SIGKILL)}
}

// exit is the end of one that has been reaped.
func (w *worker) exit(err error) *end {
	w.gone = true
	e := &end{cause: "exit status 0", exited: true, failed: true}
	if err == nil {
		return e
	}
	e.cause = err.Error()
	x, ok := errors.AsType[*exec.ExitError](err)
	if !ok { // reaped by somebody else: nobody knows how it ended
		return &end{cause: e.cause, code: 1}
	}
	e.code = x.ExitCode()
	if ws, ok := x.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		e.exited, e.code = false, 128+int(ws.Signal())
		e.failed = ws.Signal() != syscall.SIGKILL || oomKills() > w.ooms
	}
	return e
}

// dying reports that the process has begun to end and does not come to it: at
// two looks a thread of it waited in the kernel, or it takes very long.
func (w *worker) dying() bool {
	if w.zombie == 0 && !leaderEnded(w.pid()) {
		return false
	}
	w.zombie++
	return w.zombie > slowEnd || w.zombie > 1 && waits(w.pid())
}

// slowEnd is how many looks a process may take to end that waits for nothing.
const slowEnd = 10

// waits reports whether a thread of the process waits in the kernel and cannot
// be woken.
func waits(pid int) bool {
	dir := "/proc/" + strconv.Itoa(pid) + "/task/"
	tasks, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, t := range tasks {
		b, err := os.ReadFile(dir + t.Name() + "/stat")
		if err != nil {
			continue
		}
		// The name, in parentheses, may hold anything.
		if at := bytes.LastIndexByte(b, ')'); at >= 0 && len(b) > at+2 && b[at+2] == 'D' {
			return true
		}
	}
	return false
}

// leaderEnded reports that a process's main thread has ended, or is to be
// killed. A process that is being killed by somebody else shows no other sign
// while one of its threads waits in the kernel.
func leaderEnded(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return false // gone, and about to be reaped
	}
	for line := range bytes.Lines(b) {
		key, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimSpace(value)
		switch string(key) {
		case "State":
			if len(value) > 0 && (value[0] == 'Z' || value[0] == 'X') {
				return true
			}
		case "SigPnd":
			pending, err := strconv.ParseUint(string(value), 16, 64)
			return err == nil && pending&(1<<(syscall.SIGKILL-1)) != 0
		}
	}
	return false
}

// silence is how long the worker has not beaten, counted in looks: while the
// supervisor itself does not run, no time passes.
func (w *worker) silence() time.Duration {
	if n := w.page.beats().Load(); n != w.beats {
		w.beats, w.silent = n, 0
	} else {
		w.silent++
	}
	return time.Duration(w.silent) * tickEvery
}

// patience of the supervisor with a worker that has, or has not, begun to beat.
func (w *worker) patience(heartbeat time.Duration) time.Duration {
	if w.beats == 0 {
		return 3 * heartbeat
	}
	return heartbeat
}

// oomKills counts the machine's out-of-memory kills.
func oomKills() uint64 {
	b, err := os.ReadFile("/proc/vmstat")
	if err != nil {
		return 0
	}
	for line := range bytes.Lines(b) {
		if v, ok := bytes.CutPrefix(line, []byte("oom_kill ")); ok {
			n, _ := strconv.ParseUint(string(bytes.TrimSpace(v)), 10, 64)
			return n
		}
	}
	return 0
}
