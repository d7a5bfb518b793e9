package vhdx_test

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

// Writers, readers, flushes and discards go on while the image is rotated
// again and again; each read shows what it may, and so does the chain that is
// opened afterwards. Run it with -race.
func TestRotateAmongRequests(t *testing.T) {
	dir := t.TempDir()
	o := vhdx.OpenOptions{Parents: vhdx.ParentsIn(dir), GrowthStep: 4 * mib}
	layer := func(n int) string { return filepath.Join(dir, fmt.Sprintf("layer-%d.vhdx", n)) }
	if _, err := vhdx.Create(layer(0), vhdx.CreateOptions{Size: crowdSize, BlockSize: mib}); err != nil {
		t.Fatal(err)
	}
	im := open(t, layer(0), o)
	rotations := 12
	c := &crowd{im: im, model: vhdxtest.NewModel(9, crowdSize)}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	errs := make(chan error, 16)
	start := func(do func(r *rand.Rand) error, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 6))
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := do(r); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	for i := range int64(crowdWriters) {
		start(func(r *rand.Rand) error { return c.write(r, i) }, uint64(i))
	}
	start(c.read, 100)
	start(c.read, 101)
	start(func(*rand.Rand) error { return im.Flush() }, 102)
	for n := 1; n <= rotations; n++ {
		if _, err := im.CreateChild(layer(n), vhdx.ChildOptions{BlockSize: mib << (n % 3)}); err != nil {
			t.Fatalf("child %d: %v", n, err)
		}
		if err := im.RotatePath(layer(n), nil); err != nil {
			t.Fatalf("rotation %d: %v", n, err)
		}
	}
	close(stop)
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	if got := im.Info().File; got != layer(rotations) {
		t.Fatalf("the head is %s", got)
	}
	if err := errors.Join(c.readAll(), im.Close()); err != nil {
		t.Fatal(err)
	}
	o.ReadOnly, o.RefuseDirty = true, true
	c.im = open(t, layer(rotations), o)
	if err := errors.Join(c.readAll(), c.im.Close()); err != nil {
		t.Fatalf("opened again: %v", err)
	}
}

// Parents are open once, read-only, and stay locked as long as a child is open.
func TestParentsAreShared(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	if _, err := vhdx.Create(path("base"), vhdx.CreateOptions{Size: 8 * mib, BlockSize: mib}); err != nil {
		t.Fatal(err)
	}
	o := vhdx.OpenOptions{Parents: vhdx.ParentsIn(dir)}
	var children []*vhdx.Image
	for i := range 5 {
		name := path(fmt.Sprintf("child-%d", i))
		if _, err := vhdx.CreateChild(name, path("base"), vhdx.ChildOptions{}); err != nil {
			t.Fatal(err)
		}
		children = append(children, open(t, name, o))
	}
	if n := descriptorsOf(t, path("base")); n != 1 {
		t.Fatalf("%d open descriptors of the parent", n)
	}
	if _, err := vhdx.OpenPath(path("base"), vhdx.OpenOptions{}); !errors.Is(err, vhdx.ErrInUse) {
		t.Fatalf("a writable open of a parent in use: %v", err)
	}
	for _, im := range children {
		closeImage(t, im)
	}
	if n := descriptorsOf(t, path("base")); n != 0 {
		t.Fatalf("%d open descriptors of the parent after all", n)
	}
	closeImage(t, open(t, path("base"), vhdx.OpenOptions{}))
}

func descriptorsOf(t *testing.T, path string) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range all {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && to == path {
			n++
		}
	}
	return n
}

// What cannot take the image's place is refused, and the image goes on.
func TestRotateRefuses(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	o := vhdx.OpenOptions{Parents: vhdx.ParentsIn(dir), GrowthStep: mib}
	if _, err := vhdx.Create(path("a"), vhdx.CreateOptions{Size: 8 * mib, BlockSize: mib}); err != nil {
		t.Fatal(err)
	}
	im := open(t, path("a"), o)
	defer closeImage(t, im)
	want := fillRandom(1, 8*mib)
	if _, err := im.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	child := func(name string) {
		t.Helper()
		if _, err := im.CreateChild(path(name), vhdx.ChildOptions{BlockSize: mib}); err != nil {
			t.Fatal(err)
		}
	}
	child("stale")
	errNo := errors.New("no")
	for name, c := range map[string]struct {
		prepare func()
		err     error
	}{
		"parentless": {func() { closeImage(t, createOpen(t, path("parentless"))) }, vhdx.ErrInvalid},
		"missing":    {func() {}, fs.ErrNotExist},
		"refused":    {func() { child("refused") }, errNo},
		"grown":      {func() { child("grown"); must(t, im.Grow(im.Size()+mib)) }, vhdx.ErrInvalid},
	} {
		c.prepare()
		if err := im.RotatePath(path(name), func() error { return errNo }); !errors.Is(err, c.err) {
			t.Fatalf("%s: %v, want %v", name, err, c.err)
		}
		copy(want[mib:], fillRandom(7, mib))
		if _, err := im.WriteAt(want[mib:2*mib], mib); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	// The refused rotation ended a session: what was made before it is of no use.
	if err := im.RotatePath(path("stale"), nil); !errors.Is(err, vhdx.ErrParentMismatch) {
		t.Fatalf("a child of an earlier session: %v", err)
	}
	got := make([]byte, len(want))
	if _, err := im.ReadAt(got, 0); err != nil || string(got) != string(want) {
		t.Fatalf("the image shows something else (%v)", err)
	}
	if file := im.Info().File; file != path("a") {
		t.Fatalf("the head is %s", file)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func createOpen(t *testing.T, path string) *vhdx.Image {
	t.Helper()
	if _, err := vhdx.Create(path, vhdx.CreateOptions{Size: 8 * mib, BlockSize: mib}); err != nil {
		t.Fatal(err)
	}
	return open(t, path, vhdx.OpenOptions{})
}

func fillRandom(seed uint64, n int64) []byte {
	r := rand.New(rand.NewPCG(seed, 8))
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}
