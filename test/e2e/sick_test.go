package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// TestDamagedImage: an image whose tables are damaged is refused by place, the
// volumes beside it do not notice, and mended it has its content.
func TestDamagedImage(t *testing.T) {
	l := startLoad(t)
	l.claim("sick", l.class("ext4"), 64*mib, corev1.PersistentVolumeFilesystem)
	pv := l.bound("sick")
	l.run(pod("before", "sick", false, "fill", 16*mib, 41))
	l.remove("before")
	l.await("end of the device", func() error { return gone(pv) })

	image, err := os.OpenFile(l.image(pv), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	// Both copies of the region table, which says where everything is.
	const at, size = 192 << 10, 128 << 10
	was := make([]byte, size)
	if _, err := image.ReadAt(was, at); err != nil {
		t.Fatal(err)
	}
	put := func(content []byte) {
		if _, err := image.WriteAt(content, at); err != nil {
			t.Fatal(err)
		}
		if err := image.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	put(bytes.Repeat([]byte{0xa5}, size))
	l.during("a damaged image", func() {
		l.create(pod("after", "sick", false, "check", 16*mib, 41))
		message := l.event("after", "region table")
		t.Logf("event: %s", message)
		for _, want := range []string{"0x30000", "vhdxctl check"} {
			if !strings.Contains(message, want) {
				t.Errorf("it does not say %q", want)
			}
		}
	})
	put(was)
	l.ready("after")
}

// TestImageThatKills: each time its image is opened the worker dies. After
// three times that volume is left alone, waiting, while the others live on;
// and when somebody says so it is served again, with nothing lost.
func TestImageThatKills(t *testing.T) {
	l := startLoad(t)
	l.claim("sick", l.class("ext4"), 128*mib, corev1.PersistentVolumeFilesystem)
	pv := l.bound("sick")
	sick := l.run(pod("sick", "sick", false, "churn", 64*mib, 42))
	l.kept(len(l.pods) + 1)

	// Its lock, the moment that the worker loses it: the successors stand still
	// while they open the image, which is when they are made to die.
	image := l.image(pv)
	free := lockNext(t, image)
	l.during("an image that kills its server", func() {
		l.crash()
		l.await("quarantine", func() error {
			n := l.quarantined()
			if n == 1 {
				return nil
			}
			if l.opens(image) {
				l.crash()
			}
			return fmt.Errorf("%d volumes in it", n)
		})
	})
	t.Logf("event: %s", l.event("sick", "quarantine"))
	l.during("the worker's death beside a quarantine", func() { l.killWorker() })

	free()
	for _, pid := range processes("vhdx-csi") {
		if args, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline")); err == nil && strings.Contains(string(args), "--mode=node") {
			if err := syscall.Kill(pid, syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
		}
	}
	l.goesOn(sick, l.status(sick), 40)
}

// image is the file of a volume.
func (e *env) image(pv *corev1.PersistentVolume) string {
	e.Helper()
	for _, r := range records(e.T) {
		var v struct{ Name, Image string }
		if err := json.Unmarshal([]byte(r), &v); err != nil {
			e.Fatal(err)
		}
		if strings.Contains(r, pv.Name) {
			found, err := filepath.Glob(filepath.Join(poolDir, "images/*", v.Image+".vhdx"))
			if err != nil || len(found) != 1 {
				e.Fatalf("image %s of volume %s: %v, %v", v.Image, pv.Name, found, err)
			}
			return found[0]
		}
	}
	e.Fatalf("no record of volume %s", pv.Name)
	return ""
}

// lockNext waits for the lock of an image in the background, and keeps it until
// free is called.
func lockNext(t *testing.T, image string) (free func()) {
	t.Helper()
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	locked := make(chan error, 1)
	go func() {
		err := error(unix.EINTR)
		for errors.Is(err, unix.EINTR) {
			err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLKW, &unix.Flock_t{Type: unix.F_WRLCK})
		}
		locked <- err
	}()
	return func() {
		if err := <-locked; err != nil {
			t.Errorf("lock %s: %v", image, err)
		}
		_ = f.Close()
	}
}

// crash has the worker die by its own doing, as the supervisor sees it.
func (e *env) crash() {
	e.Helper()
	old := e.worker()
	if err := syscall.Kill(old, syscall.SIGABRT); err != nil {
		e.Fatal(err)
	}
	e.await("another worker", func() error {
		if e.worker() == old {
			return errors.New("still the same")
		}
		return nil
	})
}

// opens reports whether the worker has the image's file open. Without the lock
// that is while it opens the image, and no longer.
func (e *env) opens(image string) bool {
	e.Helper()
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", e.worker()))
	if err != nil {
		e.Fatal(err)
	}
	return slices.ContainsFunc(fds, func(fd string) bool {
		file, err := os.Readlink(fd)
		return err == nil && filepath.Base(file) == filepath.Base(image)
	})
}

// quarantined is how many volumes the node plugin serves no more.
func (e *env) quarantined() (n int) {
	e.Helper()
	e.await("metrics of the node plugin", func() error {
		answer, err := http.Get("http://" + net.JoinHostPort(e.driverPod(nodeSet).Status.PodIP, "9809") + "/metrics")
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		var b bytes.Buffer
		if _, err := b.ReadFrom(answer.Body); err != nil {
			return err
		}
		_, rest, ok := strings.Cut(b.String(), `vhdx_csi_volumes{state="quarantined"} `)
		if !ok {
			return errors.New("the state is not among them")
		}
		_, err = fmt.Sscan(rest, &n)
		return err
	})
	return n
}
