package keeper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// rawConn connects without greeting.
func rawConn(t *testing.T, socket string) *net.UnixConn {
	t.Helper()
	c, err := net.DialUnix(network, nil, &net.UnixAddr{Name: socket, Net: network})
	check(t, err)
	check(t, c.SetDeadline(time.Now().Add(30*time.Second)))
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func greeted(t *testing.T, socket string) *net.UnixConn {
	t.Helper()
	c := rawConn(t, socket)
	check(t, send(c, hello{low: 1, high: 1, build: "raw"}.encode(), nil))
	b, _, err := receive(c, maxHello)
	check(t, err)
	it, err := decodeHello(b)
	if err != nil || it.verdict != verdictOK || it.build != "test" {
		t.Fatal(it, err)
	}
	return c
}

// I-KEEP-7: garbage costs its sender the connection, and the keeper nothing.
func TestGarbage(t *testing.T) {
	k, socket := startKeeper(t)
	c := dial(t, socket)
	base := idle(t, k, c)
	fd := newSocket()
	defer fd.Close()
	fds, err := descriptors([]*os.File{fd, fd, fd, fd, fd, fd})
	check(t, err)
	defer closeAll(fds)
	good := message{op: opPut, id: "vol", generation: 1, files: 1}
	rnd := rand.New(rand.NewPCG(1, 2))
	noise := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		return b
	}
	for name, p := range map[string]struct {
		packet []byte
		files  []int
	}{
		"short":               {noise(messageFixed - 1), fds[:2]},
		"noise":               {noise(messageFixed + 9), fds[:1]},
		"too long":            {noise(maxMessage + 1000), fds[:4]},
		"wrong length":        {append(good.encode(), 0), fds[:1]},
		"fewer files":         {good.encode(), nil},
		"more files":          {good.encode(), fds[:2]},
		"far too many files":  {good.encode(), fds[:6]},
		"reserved field":      {append(append([]byte(nil), good.encode()[:12]...), append([]byte{1}, good.encode()[13:]...)...), fds[:1]},
		"noise, before hello": {noise(30), fds[:3]},
	} {
		var conn *net.UnixConn
		if strings.HasSuffix(name, "before hello") {
			conn = rawConn(t, socket)
		} else {
			conn = greeted(t, socket)
		}
		check(t, send(conn, p.packet, p.files))
		for { // whatever it says, it hangs up
			if _, files, err := receive(conn, maxMessage); err != nil {
				closeAll(files)
				break
			}
		}
		_ = conn.Close()
	}
	// An operation of the future is answered.
	conn := greeted(t, socket)
	check(t, send(conn, message{op: 99, id: "vol", files: 1}.encode(), fds[:1]))
	b, _, err := receive(conn, maxMessage)
	check(t, err)
	m, err := decodeMessage(b)
	if err != nil || m.op != 99 || m.code != codeUnknown {
		t.Fatal(m, err)
	}
	_ = conn.Close()
	if n := idle(t, k, c); n != base {
		t.Fatalf("%d descriptors, %d before", n, base)
	}
	s, err := c.Status(t.Context())
	if err != nil || s.Items != 0 {
		t.Fatal(s, err)
	}
}

// I-KEEP-8: clients that connect and are silent, or never read, hold up nobody.
func TestStuckClients(t *testing.T) {
	_, socket := startKeeper(t)
	c := dial(t, socket)
	check(t, c.Put(t.Context(), Item{ID: "vol", Generation: 1, Meta: make([]byte, MaxMeta)}))
	for range 5 {
		rawConn(t, socket) // does not greet
		deaf := greeted(t, socket)
		check(t, deaf.SetWriteDeadline(time.Now().Add(200*time.Millisecond)))
		for send(deaf, message{op: opGet, id: "vol"}.encode(), nil) == nil { // until both queues are full
		}
	}
	p := role(t, "putting", nil, socket, "other")
	p.line(t, "putting")
	check(t, p.Process.Signal(unix.SIGSTOP))
	for range 100 {
		if _, err := c.Get(t.Context(), "vol"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTooManyClients(t *testing.T) {
	_, socket := startKeeper(t)
	c := dial(t, socket)
	for range maxClients - 1 {
		greeted(t, socket)
	}
	for { // a client of the start may still be leaving
		_, err := Dial(t.Context(), socket)
		if err != nil {
			wantErr(t, err, ErrFull, "too many clients")
			break
		}
	}
	check(t, c.Put(t.Context(), Item{ID: "vol", Generation: 1}))
}

// I-KEEP-10
func TestOwner(t *testing.T) {
	_, socket := startKeeper(t)
	lost := make(chan error, 1)
	first, err := Dialer{Socket: socket, Owner: "node", Lost: func(err error) { lost <- err }}.Dial(t.Context())
	check(t, err)
	defer first.Close()
	check(t, first.Put(t.Context(), Item{ID: "vol", Generation: 1}))
	other, err := Dialer{Socket: socket, Owner: "another node"}.Dial(t.Context())
	check(t, err)
	defer other.Close()
	second, err := Dialer{Socket: socket, Owner: "node"}.Dial(t.Context())
	check(t, err)
	defer second.Close()
	wantErr(t, within(t, lost), ErrRevoked)
	for range 2 {
		wantErr(t, first.Put(t.Context(), Item{ID: "vol", Generation: 2}), ErrRevoked)
	}
	check(t, second.Put(t.Context(), Item{ID: "vol", Generation: 2}))
	check(t, other.Put(t.Context(), Item{ID: "vol", Generation: 3}))
	check(t, second.Close())
	third, err := Dialer{Socket: socket, Owner: "node"}.Dial(t.Context())
	check(t, err)
	check(t, third.Close())
}

// What a dead client has sent and the keeper has not read is not done any more.
func TestOwnerFencesWhatIsQueued(t *testing.T) {
	for range 50 {
		s := &server{o: Options{}.filled(), store: newStore(Options{}.filled()), sessions: map[*session]bool{}, owners: map[string]*session{}}
		connect := func() *net.UnixConn {
			a, b := pair(t)
			n := &session{server: s, conn: a}
			s.mu.Lock()
			s.sessions[n] = true
			s.mu.Unlock()
			s.wg.Go(n.serve)
			check(t, send(b, hello{low: 1, high: 1}.encode(), nil))
			_, _, err := receive(b, maxHello)
			check(t, err)
			check(t, send(b, message{op: opOwn, id: "node"}.encode(), nil))
			_, _, err = receive(b, maxMessage)
			check(t, err)
			return b
		}
		dead := connect()
		for i := range 20 {
			check(t, send(dead, message{op: opPut, id: fmt.Sprint(i), generation: 1}.encode(), nil))
		}
		_ = dead.Close()
		fresh := connect()
		s.store.mu.Lock()
		n := len(s.store.items)
		s.store.mu.Unlock()
		time.Sleep(time.Millisecond)
		s.store.mu.Lock()
		if len(s.store.items) != n {
			t.Fatalf("%d items after the successor had come with %d there", len(s.store.items), n)
		}
		s.store.mu.Unlock()
		_ = fresh.Close()
		s.wg.Wait()
	}
}

// pair makes two connected sockets.
func pair(t *testing.T) (*net.UnixConn, *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	check(t, err)
	var out [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		check(t, err)
		check(t, f.Close())
		out[i] = c.(*net.UnixConn)
		t.Cleanup(func() { _ = c.Close() })
	}
	return out[0], out[1]
}

// Both sides' versions are in the error, whichever side is the older one.
func TestVersions(t *testing.T) {
	dir := t.TempDir()
	for _, h := range []hello{{low: 7, high: 9, build: "v9.9"}, {low: 2, high: 2, build: "v9.9\x00\n", verdict: verdictVersion}} {
		socket := filepath.Join(dir, fmt.Sprint(h.low))
		l, err := net.ListenUnix(network, &net.UnixAddr{Name: socket, Net: network})
		check(t, err)
		done := make(chan error, 1)
		go func() {
			c, err := l.AcceptUnix()
			if err == nil {
				_, _, err = receive(c, maxHello)
				err = errors.Join(err, send(c, h.encode(), nil), c.Close())
			}
			done <- err
		}()
		_, err = Dialer{Socket: socket, Build: "v1.2.3"}.Dial(t.Context())
		wantErr(t, err, ErrVersion, socket, "v9.9", "v1.2.3", "version "+h.versions(), "version 1")
		check(t, within(t, done))
		_ = l.Close()
	}
	_, socket := startKeeper(t)
	c := rawConn(t, socket)
	check(t, send(c, hello{low: 5, high: 6, build: "new"}.encode(), nil))
	b, _, err := receive(c, maxHello)
	check(t, err)
	it, err := decodeHello(b)
	check(t, err)
	if d := cmp.Diff(hello{low: protocolLow, high: protocolHigh, verdict: verdictVersion, build: "test"}, it, cmp.AllowUnexported(hello{})); d != "" {
		t.Fatal(d)
	}
	if _, _, err := receive(c, maxHello); err == nil {
		t.Fatal("it goes on")
	}
}

// A keeper that was told to ends when nobody needs it, and when nobody can reach it.
func TestIdle(t *testing.T) {
	for name, left := range map[string]func(t *testing.T, c *Client, socket string){
		"holds nothing": func(*testing.T, *Client, string) {},
		"socket gone": func(t *testing.T, c *Client, socket string) {
			check(t, c.Put(t.Context(), Item{ID: "vol", Generation: 1}))
			check(t, os.Remove(socket))
		},
	} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "s")
			ended := make(chan error, 1)
			go func() {
				ended <- serve(context.Background(), Options{Socket: socket, Idle: 300 * time.Millisecond}, nil)
			}()
			var c *Client
			for c == nil {
				c, _ = Dial(t.Context(), socket)
			}
			left(t, c, socket)
			select {
			case err := <-ended:
				t.Fatalf("ended under its client: %v", err)
			case <-time.After(700 * time.Millisecond):
			}
			check(t, c.Close())
			check(t, within(t, ended))
		})
	}
}

func FuzzMessage(f *testing.F) {
	f.Add(message{op: opPut, id: "vol", generation: 7, body: []byte("meta"), files: 2}.encode())
	f.Add(message{op: opStop, code: codeHolding, body: []byte("text")}.encode())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeMessage(b)
		if err != nil {
			if !errors.Is(err, errMessage) {
				t.Fatal(err)
			}
			return
		}
		if len(m.id) > MaxID || len(m.body) > MaxMeta || m.files > MaxFiles {
			t.Fatalf("beyond the limits: %+v", m)
		}
		if got := m.encode(); !bytes.Equal(got, b) {
			t.Fatalf("% x\nencodes as % x", b, got)
		}
	})
}

func FuzzHello(f *testing.F) {
	f.Add(hello{low: 1, high: 2, verdict: verdictFull, build: "v1"}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := decodeHello(b)
		if err != nil {
			return
		}
		if got := h.encode(); !bytes.Equal(got, b) {
			t.Fatalf("% x\nencodes as % x", b, got)
		}
		_ = h.name() + h.versions()
	})
}
