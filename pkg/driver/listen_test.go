package driver

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "csi.sock")
	l, err := Listen("unix://" + path)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != socketMode {
		t.Fatalf("socket: %v, %v", st, err)
	}
	if _, err := Listen("unix:" + path); err == nil || !strings.Contains(err.Error(), "listens there") {
		t.Fatalf("a live socket was taken over: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestListenReplacesStaleSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "csi.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Listen("unix://" + path)
	if err != nil {
		t.Fatalf("stale socket: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestListenRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "data")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "unix://", "tcp://127.0.0.1:1", "/csi.sock", "unix://" + file, "unix://" + link,
		"unix://" + dir, "unix:///" + strings.Repeat("x", 108), "unix://" + filepath.Join(file, "below", "a-file")} {
		if l, err := Listen(bad); err == nil {
			t.Errorf("Listen(%q) works: %v", bad, errors.Join(l.Close()))
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Fatalf("the file: %q, %v", b, err)
	}
}

// A server that outlives the process that made the socket, killed and not yet
// buried, is no reason to refuse.
func TestListenOutlivesDyingServer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "csi.sock")
	if os.Getenv("LISTEN_TEST_SOCKET") != "" {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: os.Getenv("LISTEN_TEST_SOCKET"), Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		f, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		server := exec.Command("sleep", "60")
		server.ExtraFiles = []*os.File{f}
		if err := server.Start(); err != nil {
			t.Fatal(err)
		}
		fmt.Println("server", server.Process.Pid)
		os.Exit(0)
	}
	maker := exec.Command("/proc/self/exe", "-test.run=^TestListenOutlivesDyingServer$")
	maker.Env = append(os.Environ(), "LISTEN_TEST_SOCKET="+path)
	out, err := maker.Output()
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscanf(string(out), "server %d", &pid); err != nil {
		t.Fatalf("%q: %v", out, err)
	}
	defer func() { _ = syscall.Kill(pid, syscall.SIGKILL) }()
	if c, err := net.Dial("unix", path); err != nil {
		t.Fatalf("nobody listens, so this test proves nothing: %v", err)
	} else {
		_ = c.Close()
	}
	l, err := Listen("unix://" + path)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}
