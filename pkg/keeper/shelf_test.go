package keeper

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// systemd stands for the one that is not here: it keeps what services send to
// NOTIFY_SOCKET by the rules of sd_notify(3) and sd_pid_notify_with_fds(3), as
// far as this package relies on them. The real one has not been tried.
type systemd struct {
	t    *testing.T
	path string
	conn *net.UnixConn

	mu    sync.Mutex
	fds   []int
	names []string
	lines []string
	deaf  bool // reads, and does nothing
}

func startSystemd(t *testing.T) *systemd {
	t.Helper()
	s := &systemd{t: t, path: filepath.Join(t.TempDir(), "notify")}
	var err error
	s.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: s.path, Net: "unixgram"})
	check(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			b, files, err := receive(s.conn, 4096)
			if err != nil {
				return
			}
			s.message(string(b), files)
		}
	}()
	t.Cleanup(func() {
		_ = s.conn.Close()
		<-done
		closeAll(s.fds)
	})
	return s
}

func (s *systemd) message(text string, files []int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.deaf {
		for _, fd := range files {
			s.fds, s.names = append(s.fds, fd), append(s.names, "not looked at")
		}
		return
	}
	vars := map[string]string{}
	for l := range strings.SplitSeq(text, "\n") {
		k, v, _ := strings.Cut(l, "=")
		vars[k] = v
		s.lines = append(s.lines, l)
	}
	switch {
	case vars["BARRIER"] == "1":
		closeAll(files)
	case vars["FDSTORE"] == "1":
		for _, fd := range files {
			if slices.ContainsFunc(s.fds, func(o int) bool { return sameFile(o, fd) }) {
				closeAll([]int{fd}) // it is there already, under whatever name
				continue
			}
			s.fds, s.names = append(s.fds, fd), append(s.names, vars["FDNAME"])
		}
	case vars["FDSTOREREMOVE"] == "1":
		for i := len(s.names) - 1; i >= 0; i-- {
			if s.names[i] == vars["FDNAME"] {
				closeAll(s.fds[i : i+1])
				s.fds, s.names = slices.Delete(s.fds, i, i+1), slices.Delete(s.names, i, i+1)
			}
		}
	}
}

func (s *systemd) stored() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.names)
}

// start starts a keeper, with all that is stored.
func (s *systemd) start(socket string) *process {
	s.t.Helper()
	s.mu.Lock()
	var files []*os.File
	for _, fd := range s.fds {
		d, err := duplicate([]int{fd})
		check(s.t, err)
		files = append(files, os.NewFile(uintptr(d[0]), "stored"))
	}
	names := strings.Join(s.names, ":")
	s.mu.Unlock()
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	return keeperAt(s.t, "systemd", func(c *exec.Cmd) {
		c.ExtraFiles = files
		c.Env = append(c.Env, "NOTIFY_SOCKET="+s.path, fmt.Sprint("LISTEN_FDS=", len(files)), "LISTEN_FDNAMES="+names)
	}, socket)
}

func complete(t *testing.T, c *Client) {
	t.Helper()
	for range 500 {
		s, err := c.Status(t.Context())
		check(t, err)
		if s.Stored {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("systemd does not get everything")
}

// The keeper's own death costs nothing where systemd runs it.
func TestSystemdKeepsItems(t *testing.T) {
	sys := startSystemd(t)
	socket := filepath.Join(t.TempDir(), "keeper.sock")
	k := sys.start(socket)
	sys.mu.Lock()
	if !slices.Contains(sys.lines, "READY=1") {
		t.Fatal("systemd does not know that it is ready")
	}
	sys.mu.Unlock()
	c := dial(t, socket)
	dev, a, b := newSocket(), newMemfd("a"), newMemfd("b")
	for _, f := range []*os.File{dev, a, b} {
		defer f.Close()
	}
	other := newSocket()
	defer other.Close()
	check(t, c.Put(t.Context(), Item{ID: "vol", Generation: 1, Meta: []byte("one"), Files: []*os.File{dev, a}}))
	check(t, c.Put(t.Context(), Item{ID: "gone", Generation: 1, Files: []*os.File{other}}))
	check(t, c.Put(t.Context(), Item{ID: "bare", Generation: 9, Meta: []byte("no files")}))
	complete(t, c)
	if n := len(sys.stored()); n != 6 {
		t.Fatalf("stored: %q", sys.stored())
	}
	check(t, c.Put(t.Context(), Item{ID: "vol", Generation: 2, Meta: []byte("two"), Files: []*os.File{b, dev}}))
	check(t, c.Put(t.Context(), Item{ID: "vol", Generation: 3, Meta: []byte("three")}))
	check(t, c.Drop(t.Context(), "gone", 1))
	complete(t, c)
	if n := len(sys.stored()); n != 4 {
		t.Fatalf("stored: %q", sys.stored())
	}
	check(t, c.Close())
	for round := range 3 {
		k.kill()
		k = sys.start(socket)
		c := dial(t, socket)
		list, err := c.List(t.Context())
		check(t, err)
		if len(list) != 2 || list[0].ID != "bare" || list[0].Generation != 9 || string(list[0].Meta) != "no files" {
			t.Fatalf("round %d: %+v", round, list)
		}
		got, err := c.Get(t.Context(), "vol")
		check(t, err)
		if want := uint64(3 + round); got.Generation != want || len(got.Files) != 2 || text(t, got.Files[0]) != "b" {
			t.Fatalf("round %d: %+v", round, got)
		}
		check(t, got.Close())
		// What came back can be changed, and that comes back.
		check(t, c.Put(t.Context(), Item{ID: "vol", Generation: uint64(4 + round)}))
		complete(t, c)
		if n := len(sys.stored()); n != 4 {
			t.Fatalf("round %d: stored: %q", round, sys.stored())
		}
		check(t, c.Close())
	}
	// SIGTERM may be a restart: systemd has everything, so it ends.
	check(t, k.Process.Signal(unix.SIGTERM))
	check(t, k.Wait())
	sys.start(socket)
	c = dial(t, socket)
	check(t, c.Drop(t.Context(), "vol", 6))
	check(t, c.Drop(t.Context(), "bare", 9))
	complete(t, c)
	if n := len(sys.stored()); n != 0 {
		t.Fatalf("stored: %q", sys.stored())
	}
}

// Killed at any moment, the next keeper has each item as it was at some moment.
func TestSystemdAtAnyMoment(t *testing.T) {
	sys := startSystemd(t)
	socket := filepath.Join(t.TempDir(), "keeper.sock")
	dev := newSocket()
	defer dev.Close()
	gen := uint64(1)
	for round := range 8 {
		k := sys.start(socket)
		c := dial(t, socket)
		if round > 0 {
			got, err := c.Get(t.Context(), "vol")
			check(t, err)
			if want := fmt.Sprint(got.Generation); string(got.Meta) != want || len(got.Files) != 2 || text(t, got.Files[1]) != want {
				t.Fatalf("round %d: %+v", round, got)
			}
			gen = got.Generation + 1
			check(t, got.Close())
		}
		for i := range 5 {
			f := newMemfd(fmt.Sprint(gen))
			check(t, c.Put(t.Context(), Item{ID: "vol", Generation: gen, Meta: []byte(fmt.Sprint(gen)), Files: []*os.File{dev, f}}))
			check(t, f.Close())
			gen++
			if i == 0 && round == 0 {
				complete(t, c)
			}
		}
		time.Sleep(time.Duration(round*313) * time.Microsecond)
		check(t, c.Close())
		k.kill()
	}
}

// I-KEEP-8: a systemd that does nothing holds up no client, and is no excuse to end.
func TestSystemdHangs(t *testing.T) {
	sys := startSystemd(t)
	socket := filepath.Join(t.TempDir(), "keeper.sock")
	k := sys.start(socket)
	sys.mu.Lock()
	sys.deaf = true
	sys.mu.Unlock()
	c := dial(t, socket)
	for i := range 100 {
		check(t, c.Put(t.Context(), Item{ID: fmt.Sprint(i), Generation: 1}))
	}
	s, err := c.Status(t.Context())
	if err != nil || s.Stored {
		t.Fatal(s, err)
	}
	check(t, k.Process.Signal(unix.SIGTERM))
	k.line(t, "note: asked to stop, goes on")
	check(t, c.Stop(t.Context(), true))
	check(t, k.Wait())
}

// What systemd passes and nobody can use is closed and named.
func TestRestoreOfRubbish(t *testing.T) {
	var notes bytes.Buffer
	h := &shelf{
		store: newStore(Options{}.filled()), dirty: map[string]bool{}, shelved: map[string]shelved{},
		note: func(text string) { fmt.Fprintln(&notes, text) },
	}
	mem := func(text string) int {
		f := newMemfd(text)
		defer f.Close()
		fds, err := descriptors([]*os.File{f})
		check(t, err)
		return fds[0]
	}
	fds := []int{
		mem("not JSON"),
		mem(`{"id":"a","generation":1,"files":["vhdx-file-7","vhdx-file-8"]}`), // 8 is missing
		mem(`{"id":"b","generation":1,"files":["vhdx-file-7","vhdx-file-7"]}`),
		mem(`{"id":"","generation":1}`),
		mem(`{"id":"good","generation":2,"meta":"eA==","files":["vhdx-file-9"]}`),
		mem(`{"id":"good","generation":1,"meta":"eA=="}`),
		mem("file 7"), mem("file 9"), mem("unknown"),
	}
	var list []inherited
	for i, name := range []string{"vhdx-item-1", "vhdx-item-2", "vhdx-item-3", "vhdx-item-4", "vhdx-item-6", "vhdx-item-5", "vhdx-file-7", "vhdx-file-9", "stored"} {
		list = append(list, inherited{name: name, fd: fds[i]})
	}
	h.restore(list)
	if len(h.store.items) != 1 || h.store.items["good"].generation != 2 || string(h.store.items["good"].meta) != "x" {
		t.Fatalf("restored %q\n%s", h.store.ids, &notes)
	}
	for _, want := range []string{`"stored" is no item's`, "vhdx-file-7 is no item's", "vhdx-item-1", "vhdx-file-8 is not there", "vhdx-item-3", "vhdx-item-4", "vhdx-item-5"} {
		if !strings.Contains(notes.String(), want) {
			t.Errorf("notes lack %q:\n%s", want, &notes)
		}
	}
	for i, fd := range fds {
		_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if held := i == 7; held != !errors.Is(err, unix.EBADF) {
			t.Errorf("descriptor %d: %v", i, err)
		}
	}
	h.store.closeAll()
}
