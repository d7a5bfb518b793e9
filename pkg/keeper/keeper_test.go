package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t *testing.T, err, want error, part ...string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got %v, want %v", err, want)
	}
	for _, p := range part {
		if !strings.Contains(err.Error(), p) {
			t.Fatalf("%q lacks %q", err, p)
		}
	}
}

// within waits, for a minute at most.
func within[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(time.Minute):
		t.Fatal("nothing happens for a minute")
		panic("not reached")
	}
}

// I-KEEP-1
func TestSurvivesItsClient(t *testing.T) {
	_, socket := startKeeper(t)
	p := role(t, "put", nil, socket, "vol")
	p.line(t, "put")
	p.kill()
	c := dial(t, socket)
	got, err := c.Get(t.Context(), "vol")
	check(t, err)
	defer got.Close()
	if got.Generation != 1 || string(got.Meta) != "of a process that dies" || len(got.Files) != 2 || text(t, got.Files[0]) != "journal" {
		t.Fatalf("got %+v", got)
	}
	for _, f := range got.Files {
		flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0)
		if err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Fatalf("%s: flags %#x, %v: would leak into children", f.Name(), flags, err)
		}
	}
	list, err := c.List(t.Context())
	check(t, err)
	if d := cmp.Diff([]Item{{ID: "vol", Generation: 1, Meta: []byte("of a process that dies")}}, list); d != "" {
		t.Fatal(d)
	}
}

// I-KEEP-2: whenever a client dies, there is one of the items it put, whole,
// and no descriptor of another one.
func TestClientKilledInPut(t *testing.T) {
	k, socket := startKeeper(t)
	c := dial(t, socket)
	base := idle(t, k, c)
	n := 40
	if testing.Short() {
		n = 10
	}
	var gen uint64
	for i := range n {
		p := role(t, "putting", nil, socket, "vol")
		p.line(t, "putting")
		time.Sleep(time.Duration(i*137%3000) * time.Microsecond)
		if out := p.kill(); out != "" {
			t.Fatal(out)
		}
		c, err := Dialer{Socket: socket, Owner: "worker"}.Dial(t.Context())
		check(t, err)
		got, err := c.Get(t.Context(), "vol")
		check(t, err)
		check(t, c.Close())
		want := strconv.FormatUint(got.Generation, 10)
		if got.Generation <= gen || string(got.Meta) != want || len(got.Files) != 2 || text(t, got.Files[0]) != want {
			t.Fatalf("kill %d: after generation %d: %d with meta %q and %d files", i, gen, got.Generation, got.Meta, len(got.Files))
		}
		gen = got.Generation
		check(t, got.Close())
		settled(t, k.Process.Pid, base+2)
	}
	t.Logf("%d generations", gen)
}

// I-KEEP-3
func TestGenerations(t *testing.T) {
	k, socket := startKeeper(t)
	c := dial(t, socket)
	ctx := t.Context()
	base := idle(t, k, c)
	a, dev := newMemfd("a"), newSocket()
	defer a.Close()
	defer dev.Close()
	check(t, c.Put(ctx, Item{ID: "vol", Generation: 5, Meta: []byte("five"), Files: []*os.File{a, dev}}))
	for _, g := range []uint64{4, 5} {
		wantErr(t, c.Put(ctx, Item{ID: "vol", Generation: g, Meta: []byte("stale")}), ErrStale, "vol", "the 5 held")
	}
	wantErr(t, c.Drop(ctx, "vol", 4), ErrStale)
	wantErr(t, c.Drop(ctx, "vol", 6), ErrStale)

	// Without files those held stay.
	check(t, c.Put(ctx, Item{ID: "vol", Generation: 6, Meta: []byte("six")}))
	got, err := c.Get(ctx, "vol")
	check(t, err)
	if got.Generation != 6 || string(got.Meta) != "six" || len(got.Files) != 2 || text(t, got.Files[0]) != "a" {
		t.Fatalf("got %+v", got)
	}
	check(t, got.Close())

	// A journal may be replaced, a device may not (I-KEEP-4).
	b, other := newMemfd("b"), newSocket()
	defer b.Close()
	defer other.Close()
	wantErr(t, c.Put(ctx, Item{ID: "vol", Generation: 7, Files: []*os.File{a, other}}), ErrInvalid, "drop generation 6 first")
	check(t, c.Put(ctx, Item{ID: "vol", Generation: 7, Meta: []byte("seven"), Files: []*os.File{dev, b, other}}))
	got, err = c.Get(ctx, "vol")
	check(t, err)
	if got.Generation != 7 || len(got.Files) != 3 || text(t, got.Files[1]) != "b" {
		t.Fatalf("got %+v", got)
	}
	check(t, got.Close())
	settled(t, k.Process.Pid, base+3)

	check(t, c.Drop(ctx, "vol", 7))
	wantErr(t, c.Drop(ctx, "vol", 7), ErrNotFound)
	_, err = c.Get(ctx, "vol")
	wantErr(t, err, ErrNotFound)
	settled(t, k.Process.Pid, base)
}

// I-KEEP-4, I-KEEP-1: the other end of a socket sees when the last descriptor goes.
func TestDropAloneCloses(t *testing.T) {
	_, socket := startKeeper(t)
	c := dial(t, socket)
	mine, theirs := socketPair()
	defer theirs.Close()
	check(t, c.Put(t.Context(), Item{ID: "vol", Generation: 1, Files: []*os.File{mine}}))
	check(t, mine.Close())
	check(t, c.Close())
	open := func() bool {
		n, _, err := unix.Recvfrom(int(theirs.Fd()), make([]byte, 1), unix.MSG_DONTWAIT)
		if n != 0 && !errors.Is(err, unix.EAGAIN) {
			t.Fatal(n, err)
		}
		return errors.Is(err, unix.EAGAIN)
	}
	if !open() {
		t.Fatal("closed without a Drop")
	}
	check(t, dial(t, socket).Drop(t.Context(), "vol", 1))
	for range 500 {
		if !open() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("a dropped descriptor stays open")
}

// I-KEEP-5, I-KEEP-9
func TestWhatIsNotKept(t *testing.T) {
	k, socket := startKeeper(t)
	c := dial(t, socket)
	base := idle(t, k, c)
	file, err := os.CreateTemp(t.TempDir(), "")
	check(t, err)
	defer file.Close()
	dir, err := os.Open("/")
	check(t, err)
	defer dir.Close()
	r, w, err := os.Pipe()
	check(t, err)
	defer r.Close()
	defer w.Close()
	fd, err := unix.MemfdCreate("unsealed", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	check(t, err)
	unsealed := os.NewFile(uintptr(fd), "unsealed")
	defer unsealed.Close()
	fd, err = unix.MemfdCreate("big", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	check(t, err)
	big := os.NewFile(uintptr(fd), "big")
	defer big.Close()
	check(t, big.Truncate(MaxJournal+1))
	_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW)
	check(t, err)
	ok := newMemfd("")
	defer ok.Close()
	for name, i := range map[string]Item{
		"a file":        {ID: "vol", Generation: 1, Files: []*os.File{ok, file}},
		"a directory":   {ID: "vol", Generation: 1, Files: []*os.File{dir}},
		"a pipe":        {ID: "vol", Generation: 1, Files: []*os.File{r}},
		"unsealed":      {ID: "vol", Generation: 1, Files: []*os.File{unsealed}},
		"too large":     {ID: "vol", Generation: 1, Files: []*os.File{big}},
		"five files":    {ID: "vol", Generation: 1, Files: []*os.File{ok, ok, ok, ok, ok}},
		"no id":         {Generation: 1},
		"long id":       {ID: strings.Repeat("x", MaxID+1), Generation: 1},
		"no generation": {ID: "vol"},
		"long meta":     {ID: "vol", Generation: 1, Meta: make([]byte, MaxMeta+1)},
	} {
		if err := c.Put(t.Context(), i); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	settled(t, k.Process.Pid, base)
	check(t, c.Put(t.Context(), Item{ID: strings.Repeat("x", MaxID), Generation: 1, Meta: make([]byte, MaxMeta), Files: []*os.File{ok, ok, ok, ok}}))
}

// I-KEEP-7
func TestThousandItems(t *testing.T) {
	k, socket := startKeeper(t, "1000")
	c := dial(t, socket)
	base := idle(t, k, c)
	meta := make([]byte, MaxMeta)
	for i := range 1000 {
		f, s := newMemfd(fmt.Sprint(i)), newSocket()
		check(t, c.Put(t.Context(), Item{ID: fmt.Sprintf("pvc-%04d", i), Generation: 1, Meta: meta, Files: []*os.File{f, s}}))
		_, _ = f.Close(), s.Close()
	}
	f := newMemfd("")
	defer f.Close()
	wantErr(t, c.Put(t.Context(), Item{ID: "one more", Generation: 1, Files: []*os.File{f}}), ErrFull, "1000 items")
	settled(t, k.Process.Pid, base+2000)
	check(t, c.Put(t.Context(), Item{ID: "pvc-0500", Generation: 2, Meta: meta}))
	list, err := c.List(t.Context())
	check(t, err)
	for i, it := range list {
		if it.ID != fmt.Sprintf("pvc-%04d", i) || len(it.Meta) != MaxMeta {
			t.Fatalf("item %d is %q", i, it.ID)
		}
	}
	s, err := c.Status(t.Context())
	check(t, err)
	if len(list) != 1000 || s.Items != 1000 || s.Files != 2000 || s.PID != k.Process.Pid || s.Bytes != 10+2*90+3*900 {
		t.Fatalf("%d listed, status %+v", len(list), s)
	}
	t.Attr("keeper-memory-with-1000-items", vmRSS(t, k.Process.Pid))
	t.Log("resident memory:", vmRSS(t, k.Process.Pid), "exposed:", s.Exposed)
	for _, it := range list {
		check(t, c.Drop(t.Context(), it.ID, it.Generation))
	}
	settled(t, k.Process.Pid, base)
}

func vmRSS(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	check(t, err)
	for l := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(l, "VmRSS:"); ok {
			return strings.Join(strings.Fields(v), " ")
		}
	}
	return ""
}

func TestBytesAreBounded(t *testing.T) {
	s := newStore(Options{MaxBytes: 10}.filled())
	fd := func(text string) []int {
		f := newMemfd(text)
		defer f.Close()
		fds, err := descriptors([]*os.File{f})
		check(t, err)
		return fds
	}
	if r := s.put("a", 1, nil, fd("12345678")); r != nil {
		t.Fatal(r)
	}
	over := fd("123")
	defer closeAll(over)
	if r := s.put("b", 1, nil, over); r == nil || r.code != codeFull {
		t.Fatal(r)
	}
	if r := s.put("a", 2, nil, fd("1234567890")); r != nil {
		t.Fatal("replacing what is there takes no more room:", r)
	}
	s.closeAll()
}

// I-KEEP-6: where the mode of the socket lets it through, its user does not.
func TestOnlyRoot(t *testing.T) {
	_, socket := startKeeper(t)
	dir := filepath.Dir(socket)
	nobody := func(c *exec.Cmd) { c.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534} }
	for d := dir; d != "/"; d = filepath.Dir(d) {
		st, err := os.Stat(d)
		check(t, err)
		if st.Mode()&0o001 == 0 {
			check(t, os.Chmod(d, st.Mode()|0o001))
			t.Cleanup(func() { _ = os.Chmod(d, st.Mode()) })
		}
	}
	p := role(t, "dial", nobody, socket)
	if out, _ := io.ReadAll(p.out); !strings.Contains(string(out), "permission denied") {
		t.Fatalf("mode of the socket: %q", out)
	}
	check(t, os.Chmod(socket, 0o666))
	p = role(t, "dial", nobody, socket)
	if out, _ := io.ReadAll(p.out); !strings.Contains(string(out), ErrRefused.Error()) {
		t.Fatalf("got %q", out)
	}
	p = role(t, "dial", nil, socket)
	if out, _ := io.ReadAll(p.out); string(out) != "" {
		t.Fatalf("root got %q", out)
	}
}

// I-KEEP-11
func TestStop(t *testing.T) {
	k, socket := startKeeper(t)
	c := dial(t, socket)
	for i := range 10 {
		check(t, c.Put(t.Context(), Item{ID: fmt.Sprintf("pvc-%d", i), Generation: 1}))
	}
	wantErr(t, c.Stop(t.Context(), false), ErrHolding, "10 volumes", "pvc-0, pvc-1", "and 2 more", "--force")
	check(t, k.Process.Signal(syscall.SIGTERM))
	k.line(t, "note: asked to stop, goes on: its end would cut off 10 volumes")
	if _, err := c.Get(t.Context(), "pvc-3"); err != nil {
		t.Fatal(err)
	}
	check(t, c.Stop(t.Context(), true))
	check(t, k.Wait())

	k, socket = startKeeper(t)
	check(t, k.Process.Signal(syscall.SIGTERM))
	check(t, k.Wait())
	k = keeperAt(t, "keeper", nil, socket) // over the dead one's socket
	check(t, dial(t, socket).Stop(t.Context(), false))
	check(t, k.Wait())
}

func TestOneKeeper(t *testing.T) {
	_, socket := startKeeper(t)
	wantErr(t, serve(t.Context(), Options{Socket: socket}, nil), ErrRunning, socket)
	plain := filepath.Join(t.TempDir(), "file")
	check(t, os.WriteFile(plain, nil, 0o600))
	if err := serve(t.Context(), Options{Socket: plain}, nil); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Fatal(err)
	}
	_, err := Dial(t.Context(), plain+"-none")
	wantErr(t, err, ErrUnavailable, plain)
}

func TestLongPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 120))
	check(t, os.Mkdir(dir, 0o700))
	socket := filepath.Join(dir, "keeper.sock")
	keeperAt(t, "keeper", nil, socket)
	check(t, dial(t, socket).Put(t.Context(), Item{ID: "vol", Generation: 1}))
}

// A client outlives its keeper, and so does what it has put (in the client).
func TestKeeperDies(t *testing.T) {
	k, socket := startKeeper(t)
	restored := make(chan int, 10)
	lost := make(chan error, 10)
	c, err := Dialer{Socket: socket, Lost: func(err error) { lost <- err }, Restored: func(n int, err error) {
		if err != nil {
			t.Error(err)
		}
		restored <- n
	}}.Dial(t.Context())
	check(t, err)
	defer c.Close()
	f, dev := newMemfd("journal"), newSocket()
	check(t, c.Put(t.Context(), Item{ID: "a", Generation: 3, Meta: []byte("a"), Files: []*os.File{f, dev}}))
	check(t, c.Put(t.Context(), Item{ID: "b", Generation: 1, Files: []*os.File{dev}}))
	check(t, c.Put(t.Context(), Item{ID: "gone", Generation: 1}))
	check(t, c.Drop(t.Context(), "gone", 1))
	_, _ = f.Close(), dev.Close()

	// One that has got an item serves it, and answers for it.
	c2 := dial(t, socket)
	check(t, c2.Put(t.Context(), Item{ID: "b", Generation: 2, Meta: []byte("b2")}))

	k.kill()
	wantErr(t, within(t, lost), ErrUnavailable)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	wantErr(t, c.Put(ctx, Item{ID: "c", Generation: 1}), ErrUnavailable)

	keeperAt(t, "keeper", nil, socket)
	if n := within(t, restored); n < 1 {
		t.Fatalf("%d items restored", n)
	}
	got, err := dial(t, socket).Get(t.Context(), "a")
	check(t, err)
	defer got.Close()
	if got.Generation != 3 || string(got.Meta) != "a" || len(got.Files) != 2 || text(t, got.Files[0]) != "journal" {
		t.Fatalf("got %+v", got)
	}
	got, err = c2.Get(t.Context(), "b")
	check(t, err)
	defer got.Close()
	if got.Generation != 2 || string(got.Meta) != "b2" || len(got.Files) != 1 {
		t.Fatalf("got %+v", got)
	}
	check(t, c.Put(t.Context(), Item{ID: "c", Generation: 1}))
}

func TestMaintain(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "keeper.sock")
	t.Setenv(roleEnv, "maintained")
	notes := make(chan string, 100)
	m := Maintenance{Socket: socket, Command: []string{"/proc/self/exe", socket}, Note: func(s string) { notes <- s }}
	stop, err := Maintain(t.Context(), m)
	check(t, err)
	c := dial(t, socket)
	check(t, c.Put(t.Context(), Item{ID: "vol", Generation: 1, Meta: []byte("x")}))
	s, err := c.Status(t.Context())
	check(t, err)
	check(t, unix.Kill(s.PID, unix.SIGKILL))
	for range 200 { // until the client has found the new one and given it the item
		if got, err := c.Get(t.Context(), "vol"); err == nil && string(got.Meta) == "x" {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	s2, err := c.Status(t.Context())
	check(t, err)
	if s2.PID == s.PID || s2.Items != 1 {
		t.Fatalf("status %+v", s2)
	}
	wantErr(t, stop(t.Context()), ErrHolding)
	// The next maintainer finds it.
	stop, err = Maintain(t.Context(), m)
	check(t, err)
	check(t, c.Drop(t.Context(), "vol", 1))
	check(t, c.Close())
	check(t, stop(t.Context()))
	for range 500 {
		if _, err = os.Stat(fmt.Sprintf("/proc/%d", s2.PID)); err != nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err == nil {
		t.Fatal("the keeper that holds nothing still runs")
	}
	m.Command = []string{"/no/such/program"}
	if _, err := Maintain(t.Context(), m); err == nil {
		t.Fatal("maintains without a program")
	}
}
