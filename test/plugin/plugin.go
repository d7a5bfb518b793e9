// Package plugin runs the real vhdx-csi as a process of its own and speaks CSI
// to it over its socket, as the sidecars and kubelet would. The tests of the
// whole path and the demo share it.
package plugin

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
)

// Options say what to start.
type Options struct {
	Binary string
	// Dir holds everything of the process: pool/, state/, kubelet/ for staging
	// and target paths, csi.sock and plugin.log. A restart in the same Dir is a
	// restart of the plugin.
	Dir string
	// Mode of the plugin; "": all, with a local pool.
	Mode string
	// Pool is the directory of its pool; "": PoolDir(Dir).
	Pool string
	// Node is what the plugin is told to be; "": NodeID.
	Node string
	// Args are added to the arguments made up here.
	Args []string
	// Log gets a copy of what the plugin logs; nil: only the file.
	Log io.Writer
}

// NodeID is the node that a plugin is of, unless it is told another one.
const NodeID = "node-1"

// Process is a running plugin.
type Process struct {
	Dir  string
	node string
	conn *grpc.ClientConn
	cmd  *exec.Cmd
	log  *os.File

	done chan struct{} // closed once the process has been reaped
	err  error         // of its end; valid after done
}

// startLimit is how long a plugin may take until it answers.
const startLimit = 30 * time.Second

// PoolDir is the plugin's only pool.
func PoolDir(dir string) string { return filepath.Join(dir, "pool") }

// LogFile is where the plugin logs to.
func LogFile(dir string) string { return filepath.Join(dir, "plugin.log") }

// Endpoint is where the plugin serves.
func Endpoint(dir string) string { return "unix://" + filepath.Join(dir, "csi.sock") }

// Start starts a plugin in all mode and waits until it answers a Probe.
func Start(ctx context.Context, o Options) (*Process, error) {
	for _, d := range []string{PoolDir(o.Dir), filepath.Join(o.Dir, "state"), filepath.Join(o.Dir, "kubelet")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("make the plugin's directories: %w", err)
		}
	}
	log, err := os.OpenFile(LogFile(o.Dir), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the plugin's log: %w", err)
	}
	p := &Process{Dir: o.Dir, node: cmp.Or(o.Node, NodeID), log: log, done: make(chan struct{})}
	p.cmd = exec.Command(o.Binary, o.args()...)
	p.cmd.Stderr = log
	p.cmd.WaitDelay = 2 * time.Second
	if o.Log != nil {
		p.cmd.Stderr = io.MultiWriter(log, o.Log)
	}
	// A group of its own: Ctrl-C on the terminal is for whoever started it. It
	// does not outlive them.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	started := make(chan error)
	go p.live(started)
	if err := <-started; err != nil {
		return nil, errors.Join(fmt.Errorf("start the plugin: %w", err), log.Close())
	}
	if err := p.ready(ctx); err != nil {
		p.Kill()
		return nil, fmt.Errorf("%w; its log ends:\n%s", err, Tail(o.Dir, 2000))
	}
	return p, nil
}

func (o Options) args() []string {
	// Tests create larger volumes than they fill.
	pool := "default=" + cmp.Or(o.Pool, PoolDir(o.Dir)) + ",overcommit=100"
	if o.Mode == "" {
		pool += ",local"
	}
	return append([]string{
		"--mode=" + cmp.Or(o.Mode, "all"), "--endpoint=" + Endpoint(o.Dir), "--node-id=" + cmp.Or(o.Node, NodeID),
		"--state-dir=" + filepath.Join(o.Dir, "state"), "--pool=" + pool,
	}, o.Args...)
}

// live starts the process and reaps it. It keeps its thread all the while, for
// the kernel takes the end of the thread that started a child for the parent's.
func (p *Process) live(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := p.cmd.Start()
	started <- err
	if err != nil {
		return
	}
	err = p.cmd.Wait()
	p.err = errors.Join(err, p.log.Close())
	close(p.done)
}

func (p *Process) ready(ctx context.Context) error {
	conn, err := grpc.NewClient(Endpoint(p.Dir), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1.5, MaxDelay: time.Second}}))
	if err != nil {
		return fmt.Errorf("connect to the plugin: %w", err)
	}
	p.conn = conn
	return p.Await(ctx)
}

// Await waits until the plugin answers, also where its worker has just been
// killed.
func (p *Process) Await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for {
		_, err := p.Identity().Probe(ctx, &csi.ProbeRequest{})
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("the plugin ended: %w", p.err)
		case <-ctx.Done():
			return fmt.Errorf("the plugin does not answer: %w", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Identity is the plugin's identity service.
func (p *Process) Identity() csi.IdentityClient { return csi.NewIdentityClient(p.conn) }

// Controller is the plugin's controller service.
func (p *Process) Controller() csi.ControllerClient { return csi.NewControllerClient(p.conn) }

// Node is the plugin's node service.
func (p *Process) Node() csi.NodeClient { return csi.NewNodeClient(p.conn) }

// PID of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Signal sends a signal to the process.
func (p *Process) Signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

// Stop asks for an orderly end, waits for it and returns how it ended.
func (p *Process) Stop(ctx context.Context) error {
	defer p.hangUp()
	if err := p.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop the plugin: %w", err)
	}
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return fmt.Errorf("the plugin (process %d) does not stop: %w; its log ends:\n%s", p.PID(), ctx.Err(), Tail(p.Dir, 2000))
	}
}

// Kill ends the process at once, as a crash would, and waits until it is gone.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
	p.hangUp()
}

func (p *Process) hangUp() {
	if p.conn != nil {
		_ = p.conn.Close()
	}
}

// Tail is the end of the plugin's log.
func Tail(dir string, n int) string {
	b, err := os.ReadFile(LogFile(dir))
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-n):])
}

// Buffer is a bytes.Buffer that several goroutines may use.
type Buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
