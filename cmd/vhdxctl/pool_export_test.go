package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/control/wire"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

const exportDisk = 16 << 20

// envExport makes the test's binary the command.
const envExport = "VHDXCTL_EXPORT_TEST"

// host is a node that has a volume of a pool open, and answers over the network.
type host struct {
	control.Holder // nil: nothing but a cut is asked for

	t      *testing.T
	dir    string
	set    *pool.Set
	im     *vhdx.Image
	volume string
	server *wire.Server

	mu    sync.Mutex
	asked []control.CutOptions
	after func() // runs when a cut is done and not answered
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{t: t, dir: t.TempDir(), after: func() {}}
	p, err := pool.Open(pool.Options{Name: "p", Dir: h.dir, Overcommit: 10, Holder: "n1"})
	h.must(err)
	h.set, err = pool.NewSet(p)
	h.must(err)
	t.Cleanup(func() { h.must(h.set.Close()) })
	v, err := h.set.CreateVolume(t.Context(), pool.Spec{Name: "v", Size: exportDisk, Params: pool.Params{BlockSize: 1 << 20}})
	h.must(err)
	h.volume = v.ID
	h.must(h.set.RegisterNode(t.Context(), pool.Node{ID: "n1", BootID: "b"}))
	h.must(h.set.Attach(t.Context(), v.ID, "n1", false))
	return h
}

func (h *host) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

// stage opens the volume.
func (h *host) stage() {
	h.t.Helper()
	var err error
	h.im, err = h.set.OpenImage(h.t.Context(), h.volume, false, vhdx.OpenOptions{})
	h.must(err)
	h.t.Cleanup(func() { h.must(h.im.Close()) })
}

// listen answers controllers from now on.
func (h *host) listen() {
	h.t.Helper()
	id, err := wire.NewIdentity("n1")
	h.must(err)
	l, err := (&net.ListenConfig{}).Listen(h.t.Context(), "tcp", "127.0.0.1:0")
	h.must(err)
	h.server = wire.NewServer(wire.ServerOptions{
		Identity: id, Pools: h.set, Holder: h, Status: func(err error) error { return err },
		Refused: func(_ net.Addr, err error) { h.t.Logf("refused: %v", err) }, Failed: func(err error) { h.t.Errorf("failed: %v", err) },
	})
	ended := make(chan error, 1)
	go func() { ended <- h.server.Serve(l) }()
	h.t.Cleanup(func() { h.must(errors.Join(h.server.Stop(context.Background()), <-ended)) })
	h.must(h.set.RegisterNode(h.t.Context(), pool.Node{ID: "n1", BootID: "b", Endpoints: []string{l.Addr().String()}, Certificates: id.Certificates()}))
}

func (h *host) Cut(ctx context.Context, _, snapshot string, o control.CutOptions) (control.CutResult, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.asked = append(h.asked, o)
	like := pool.ConsistentCrash
	if o.Freeze {
		like = pool.ConsistentFilesystem
	}
	_, err := h.set.Cut(ctx, snapshot, pool.Live{Image: h.im, Around: func(cut func(pool.Likeness) error) error { return cut(pool.Always(like)) }})
	h.after()
	return control.CutResult{Consistency: string(like)}, err
}

// whenCut has fn run when a cut is done and not answered.
func (h *host) whenCut(fn func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.after = fn
}

// write fills the disk with one letter, here and there.
func (h *host) write(letter byte) {
	h.t.Helper()
	for off := int64(0); off < exportDisk; off += 3 << 20 {
		_, err := h.im.WriteAt(bytes.Repeat([]byte{letter}, 8192), off)
		h.must(err)
	}
}

// letters is the disk as write leaves it.
func letters(letter byte) []byte {
	b := make([]byte, exportDisk)
	for off := 0; off < exportDisk; off += 3 << 20 {
		copy(b[off:], bytes.Repeat([]byte{letter}, 8192))
	}
	return b
}

// export runs the command and returns what it said.
func (h *host) export(ctx context.Context, want int, args ...string) string {
	h.t.Helper()
	var out, errOut bytes.Buffer
	if code := run(ctx, append([]string{"pool", "export", "--pool", h.dir}, args...), &out, &errOut); code != want {
		h.t.Fatalf("exit code %d, want %d: %s%s", code, want, out.String(), errOut.String())
	}
	return out.String() + errOut.String()
}

// clean: no export has left anything in the pool but a layer to be merged.
func (h *host) clean() {
	h.t.Helper()
	for _, dir := range []string{"cuts/*", "snapshots/*", "controllers"} {
		left, err := filepath.Glob(filepath.Join(h.dir, dir, "*.json"))
		h.must(err)
		if len(left) > 0 {
			h.t.Errorf("left: %v", left)
		}
	}
	if p := h.set.Problems(h.t.Context()); len(p) > 0 {
		h.t.Errorf("problems: %v", p)
	}
}

// exported checks the file that an export has made, by QEMU's eyes too.
func (h *host) exported(file string, want []byte) {
	h.t.Helper()
	im, err := vhdx.OpenPath(file, vhdx.OpenOptions{ReadOnly: true})
	h.must(err)
	got := make([]byte, exportDisk)
	_, err = im.ReadAt(got, 0)
	info := im.Info()
	h.must(errors.Join(err, im.Close()))
	if !bytes.Equal(got, want) || info.HasParent {
		h.t.Errorf("%s differs, parent %v", file, info.HasParent)
	}
	if _, err := exec.LookPath("qemu-img"); err != nil {
		h.t.Log("qemu-img is not there")
		return
	}
	raw := file + ".raw"
	h.must(os.WriteFile(raw, want, 0o600))
	if out, err := exec.CommandContext(h.t.Context(), "qemu-img", "compare", "-f", "vhdx", "-F", "raw", file, raw).CombinedOutput(); err != nil {
		h.t.Errorf("qemu-img: %v: %s", err, out)
	}
}

// A volume that a node writes to is exported as it is when the node cuts it.
func TestExportInUse(t *testing.T) {
	h := newHost(t)
	h.stage()
	h.listen()
	h.write('a')
	h.whenCut(func() { h.write('b') })
	for i, args := range [][]string{{}, {"--fixed"}, {"--consistency", "crash"}} {
		h.write('a')
		file := filepath.Join(h.dir+"-out", "out.vhdx")
		h.must(os.MkdirAll(filepath.Dir(file), 0o700))
		said := h.export(t.Context(), exitOK, append(args, "--overwrite", h.volume, file)...)
		want := "consistency filesystem"
		if i == 2 {
			want = "consistency crash"
		}
		if !strings.Contains(said, want) {
			t.Errorf("%q is not in %s", want, said)
		}
		h.exported(file, letters('a'))
		h.clean()
	}
	if len(h.asked) != 3 || !h.asked[0].Freeze || h.asked[2].Freeze || h.asked[0].Limit != control.FreezeLimit {
		t.Errorf("the node was asked for %+v", h.asked)
	}
	got := make([]byte, exportDisk)
	_, err := h.im.ReadAt(got, 0)
	h.must(err)
	if !bytes.Equal(got, letters('b')) {
		t.Error("the volume has not what was written to it")
	}
}

// An attached volume that no node has open needs no node, and one that is attached
// nowhere no snapshot.
func TestExportClosed(t *testing.T) {
	h := newHost(t)
	im, err := h.set.OpenImage(t.Context(), h.volume, false, vhdx.OpenOptions{})
	h.must(err)
	h.im = im
	h.write('a')
	h.must(im.Close())
	file := filepath.Join(t.TempDir(), "out.vhdx")
	if said := h.export(t.Context(), exitOK, h.volume, file); !strings.Contains(said, "consistency filesystem") {
		t.Error(said)
	}
	h.exported(file, letters('a'))
	h.clean()
	h.must(h.set.Detach(t.Context(), h.volume, "n1"))
	v, err := h.set.Volume(t.Context(), h.volume)
	h.must(err)
	if said := h.export(t.Context(), exitOK, "--overwrite", h.volume, file); strings.Contains(said, "consistency") {
		t.Error(said)
	}
	h.exported(file, letters('a'))
	if now, err := h.set.Volume(t.Context(), h.volume); err != nil || now.Layers != v.Layers {
		t.Errorf("%d layers, then %d, %v", v.Layers, now.Layers, err)
	}
	h.clean()
}

// What goes wrong leaves no snapshot and no file.
func TestExportFails(t *testing.T) {
	h := newHost(t)
	h.stage()
	h.write('a')
	file := filepath.Join(t.TempDir(), "out.vhdx")
	gone := func(what string) {
		t.Helper()
		h.clean()
		if _, err := os.Lstat(file); err == nil {
			t.Errorf("%s: there is a file", what)
		}
	}
	if said := h.export(t.Context(), exitUnreachable, h.volume, file); !strings.Contains(said, "not where to ask it") || !strings.Contains(said, "Run this where the node can be reached") {
		t.Error(said)
	}
	gone("no address")
	h.listen()
	h.export(t.Context(), exitFailed, "--resume", h.volume, file)
	gone("resume")
	h.export(t.Context(), exitFailed, "--consistency", "none", h.volume, file)
	h.export(t.Context(), exitFailed, h.volume, filepath.Join(file, "no directory"))
	gone("target")
	if len(h.asked) > 1 {
		t.Errorf("asked %d times", len(h.asked))
	}

	ctx, cancel := context.WithCancel(t.Context())
	h.whenCut(cancel) // as Ctrl-C
	if said := h.export(ctx, exitFailed, h.volume, file); !strings.Contains(said, context.Canceled.Error()) {
		t.Error(said)
	}
	h.whenCut(func() {})
	gone("Ctrl-C")
	h.must(h.server.Stop(context.Background()))
	if said := h.export(t.Context(), exitUnreachable, h.volume, file); !strings.Contains(said, control.ErrUnreachable.Error()) {
		t.Error(said)
	}
	gone("stopped")
}

// A kill leaves a snapshot that is in no list, and goes by itself.
func TestExportKilled(t *testing.T) {
	h := newHost(t)
	h.stage()
	h.listen()
	h.write('a')
	self, err := os.Executable()
	h.must(err)
	cmd := exec.CommandContext(t.Context(), self, "pool", "export", "--pool", h.dir, h.volume, filepath.Join(t.TempDir(), "out.vhdx"))
	cmd.Env = append(os.Environ(), envExport+"=1")
	cmd.Stdout, cmd.Stderr = io.Discard, io.Discard
	started := make(chan struct{})
	h.whenCut(func() {
		<-started
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
	})
	h.must(cmd.Start())
	close(started)
	if err := cmd.Wait(); err == nil {
		t.Fatal("it was not killed")
	}
	cuts, err := filepath.Glob(filepath.Join(h.dir, "cuts", "*", "*.json"))
	h.must(err)
	if len(cuts) != 1 {
		t.Fatalf("cuts: %v", cuts)
	}
	if all, _, err := h.set.Snapshots(t.Context(), pool.SnapshotFilter{}, "", 0); err != nil || len(all) > 0 {
		t.Fatalf("%v, %v", all, err)
	}
	b, err := os.ReadFile(cuts[0])
	h.must(err)
	year := time.Now().UTC().Format(`"reserved": "2006`)
	h.must(os.WriteFile(cuts[0], bytes.Replace(b, []byte(year), []byte(`"reserved": "2004`), 1), 0o600))
	h.must(h.set.Untended(t.Context(), func(string) error { return nil }))
	if _, err := os.Stat(cuts[0]); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the snapshot is still there: %v", err)
	}
}
