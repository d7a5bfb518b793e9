package keeper

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// roleEnv makes this test binary one of the processes below; the arguments
// are the role's.
const roleEnv = "KEEPER_TEST_ROLE"

var roles = map[string]func(args []string) error{
	"keeper":     roleKeeper,
	"maintained": roleKeeper,
	"systemd":    roleSystemd,
	"put":        rolePut,
	"putting":    rolePutting,
	"dial":       roleDial,
	"look":       roleLook,
}

func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		if role != "systemd" && role != "maintained" { // these have no such input
			go func() { // it ends with the test, however that ends
				_, _ = io.Copy(io.Discard, os.Stdin)
				os.Exit(1)
			}()
		}
		if err := roles[role](os.Args[1:]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	flag.Parse()
	if flag.Lookup("test.fuzz").Value.String() != "" {
		os.Exit(m.Run()) // the fuzzer's own goroutines may outlast it
	}
	goleak.VerifyTestMain(m)
}

// roleKeeper serves on a socket; a second argument bounds its items.
func roleKeeper(args []string) error {
	o := Options{Socket: args[0], Build: "test", Note: func(text string) { fmt.Println("note:", text) }}
	if len(args) > 1 {
		o.MaxItems, _ = strconv.Atoi(args[1])
	}
	stop := make(chan struct{})
	o.Stop = stop
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	go func() {
		for range signals {
			stop <- struct{}{}
		}
	}()
	return Serve(context.Background(), o)
}

// roleSystemd becomes a keeper to which systemd passes the descriptors from 3 on.
func roleSystemd(args []string) error {
	_ = os.Setenv(roleEnv, "maintained")
	_ = os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	return unix.Exec("/proc/self/exe", append([]string{"keeper"}, args...), os.Environ())
}

// rolePut puts one item, says so, and waits for its death.
func rolePut(args []string) error {
	c, err := Dial(context.Background(), args[0])
	if err != nil {
		return err
	}
	i := Item{ID: args[1], Generation: 1, Meta: []byte("of a process that dies")}
	i.Files = append(i.Files, newMemfd("journal"), newSocket())
	if err := c.Put(context.Background(), i); err != nil {
		return err
	}
	fmt.Println("put")
	select {}
}

// rolePutting puts generation after generation until it is killed.
func rolePutting(args []string) error {
	ctx := context.Background()
	c, err := Dialer{Socket: args[0], Owner: "worker"}.Dial(ctx)
	if err != nil {
		return err
	}
	was, err := c.Get(ctx, args[1])
	switch {
	case err == nil:
		if err := c.Drop(ctx, args[1], was.Generation); err != nil {
			return err
		}
	case !errors.Is(err, ErrNotFound):
		return err
	}
	s := newSocket()
	for gen := was.Generation + 1; ; gen++ {
		text := strconv.FormatUint(gen, 10)
		f := newMemfd(text)
		if err := c.Put(ctx, Item{ID: args[1], Generation: gen, Meta: []byte(text), Files: []*os.File{f, s}}); err != nil {
			return err
		}
		_ = f.Close()
		if gen == was.Generation+1 {
			fmt.Println("putting")
		}
	}
}

// roleDial tries to connect and says what comes of it.
func roleDial(args []string) error {
	c, err := Dial(context.Background(), args[0])
	if err != nil {
		return err
	}
	return c.Close()
}

// process is a child that plays a role.
type process struct {
	*exec.Cmd
	out *bufio.Reader
}

func role(t *testing.T, name string, change func(*exec.Cmd), args ...string) *process {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), roleEnv+"="+name)
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = w, os.Stderr
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(cmd)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	p := &process{Cmd: cmd, out: bufio.NewReader(r)}
	t.Cleanup(func() {
		p.kill()
		_ = r.Close()
	})
	return p
}

// kill ends the process, if it has not ended, and returns what remains of its output.
func (p *process) kill() string {
	_ = p.Process.Kill()
	_ = p.Wait()
	b, _ := io.ReadAll(p.out)
	return string(b)
}

// line waits for a line of output that begins so.
func (p *process) line(t *testing.T, begin string) string {
	t.Helper()
	for {
		s, err := p.out.ReadString('\n')
		if strings.HasPrefix(s, begin) {
			return s
		}
		if err != nil {
			t.Fatalf("waiting for %q: %q, %v", begin, s, err)
		}
	}
}

// startKeeper starts one and waits until it answers.
func startKeeper(t *testing.T, args ...string) (*process, string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "keeper.sock")
	return keeperAt(t, "keeper", nil, append([]string{socket}, args...)...), socket
}

func keeperAt(t *testing.T, name string, change func(*exec.Cmd), args ...string) *process {
	t.Helper()
	p := role(t, name, change, args...)
	for range 1000 {
		c, err := Dial(t.Context(), args[0])
		if err == nil {
			_ = c.Close()
			return p
		}
		if !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("the keeper does not answer: %s", p.kill())
	return nil
}

func dial(t *testing.T, socket string) *Client {
	t.Helper()
	c, err := Dial(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// newMemfd makes a journal with a text in it.
func newMemfd(text string) *os.File {
	fd, err := unix.MemfdCreate("keeper-test", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		panic(err)
	}
	f := os.NewFile(uintptr(fd), "memfd")
	if _, err := f.WriteString(text); err != nil {
		panic(err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW); err != nil {
		panic(err)
	}
	return f
}

// newSocket stands for a device: its peer sees when the last one is closed.
func newSocket() *os.File {
	mine, theirs := socketPair()
	_ = theirs.Close()
	return mine
}

func socketPair() (*os.File, *os.File) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		panic(err)
	}
	return os.NewFile(uintptr(fds[0]), "socket"), os.NewFile(uintptr(fds[1]), "socket")
}

func text(t *testing.T, f *os.File) string {
	t.Helper()
	b := make([]byte, 100)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return string(b[:n])
}

// openFiles counts a process's descriptors.
func openFiles(t *testing.T, pid int) int {
	t.Helper()
	d, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

// idle counts the keeper's descriptors when c is its only client.
func idle(t *testing.T, k *process, c *Client) int {
	t.Helper()
	for range 500 {
		s, err := c.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if s.Clients == 1 {
			return openFiles(t, k.Process.Pid)
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("a client that has gone stays")
	return 0
}

// settled waits until a process has so many descriptors: what a dead client
// held is closed a moment after its death.
func settled(t *testing.T, pid, want int) {
	t.Helper()
	n := 0
	for range 500 {
		if n = openFiles(t, pid); n == want {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("the keeper has %d descriptors, want %d", n, want)
}
