package sanity

import (
	"fmt"
	"os"
	"slices"
	"syscall"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-vhdx/csi-driver-vhdx/test/plugin"
)

// wantHealth fails unless node and controller, and the controller's list, say
// this of the volume, which is the only one.
func wantHealth(t *testing.T, p *plugin.Process, id string, want ...string) {
	t.Helper()
	here, err := p.Node().NodeGetVolumeHealth(t.Context(), &csi.NodeGetVolumeHealthRequest{VolumeId: id})
	must(t, err)
	there, err := p.Controller().ControllerGetVolumeHealth(t.Context(), &csi.ControllerGetVolumeHealthRequest{VolumeId: id})
	must(t, err)
	listed := &csi.VolumeHealth{}
	list, err := p.Controller().ControllerListVolumeHealth(t.Context(), &csi.ControllerListVolumeHealthRequest{MaxEntries: 1})
	must(t, err)
	if len(list.GetEntries()) > 0 {
		listed = list.GetEntries()[0]
	}
	for who, h := range map[string]*csi.VolumeHealth{"node": here.GetVolumeHealth(), "controller": there.GetVolumeHealth(), "list": listed} {
		var got []string
		for _, e := range h.GetHealthStatuses() {
			got = append(got, fmt.Sprintf("%s/%s", e.GetStatus(), e.GetReason()))
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s (-want +got)\n%s", who, d)
		}
	}
}

// A volume's health through its life, as the two sides of the real plugin tell it.
func TestHealth(t *testing.T) {
	ctx, dir := t.Context(), home(t)
	p := start(t, dir)
	v, err := p.Create(ctx, "life", 512*mib, kinds["ext4"], nil)
	must(t, err)
	wantHealth(t, p, v.ID)
	must(t, v.Up(ctx))
	wantHealth(t, p, v.ID)
	must(t, v.Unpublish(ctx), v.Unstage(ctx))
	wantHealth(t, p, v.ID)

	image, err := plugin.Image(dir)
	must(t, err)
	whole, err := os.ReadFile(image)
	must(t, err)
	broken := slices.Clone(whole)
	copy(broken[64<<10:], make([]byte, 128<<10)) // both headers
	must(t, os.WriteFile(image, broken, 0o600))
	wantHealth(t, p, v.ID) // nobody has opened it
	if err := v.Stage(ctx); err == nil {
		t.Fatal("staged all the same")
	}
	wantHealth(t, p, v.ID, "DATA_LOSS/HeaderCorrupt")
	must(t, os.WriteFile(image, whole, 0o600), v.Stage(ctx))
	wantHealth(t, p, v.ID)
	must(t, v.Unstage(ctx))

	must(t, os.Remove(image))
	wantHealth(t, p, v.ID, "DATA_LOSS/ImageMissing")
	must(t, os.WriteFile(image, whole, 0o600), v.Detach(ctx), v.Delete(ctx))
	_, err = p.Node().NodeGetVolumeHealth(ctx, &csi.NodeGetVolumeHealthRequest{VolumeId: v.ID})
	if status.Code(err) != codes.NotFound {
		t.Errorf("deleted: %v", err)
	}
}

// Beside a pool whose share answers nothing, the volumes of the others are as well
// as before, and the share's are said not to be.
func TestHealthBesideAShareThatHangs(t *testing.T) {
	ctx, dir, hung := t.Context(), home(t), t.TempDir()
	fuse, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	must(t, err)
	defer fuse.Close() // nobody reads the requests that come there
	must(t, syscall.Mount("hung", hung, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fuse.Fd())))
	p := start(t, dir, "--pool=hung="+hung)
	t.Cleanup(func() { // before the plugin is stopped
		fuse.Close()
		must(t, syscall.Unmount(hung, syscall.MNT_DETACH))
	})
	v, err := p.Create(ctx, "life", 512*mib, kinds["ext4"], nil)
	must(t, err, v.Up(ctx))
	id := "hung" + v.ID[len("default"):]
	for id, want := range map[string]string{v.ID: "", id: "PoolUnreachable"} {
		here, err := p.Node().NodeGetVolumeHealth(ctx, &csi.NodeGetVolumeHealthRequest{VolumeId: id})
		must(t, err)
		there, err := p.Controller().ControllerGetVolumeHealth(ctx, &csi.ControllerGetVolumeHealthRequest{VolumeId: id})
		must(t, err)
		for _, h := range []*csi.VolumeHealth{here.GetVolumeHealth(), there.GetVolumeHealth()} {
			got := ""
			for _, e := range h.GetHealthStatuses() {
				got += e.GetReason()
			}
			if got != want {
				t.Errorf("%s: %v, want %q", id, h, want)
			}
		}
	}
	storage, err := p.Node().NodeGetStorageHealth(ctx, &csi.NodeGetStorageHealthRequest{})
	must(t, err)
	if b := storage.GetBackendHealth(); len(b) != 1 || b[0].GetStatus() != csi.StorageHealthErrorType_STORAGE_UNREACHABLE || b[0].GetReason() != "PoolUnreachable" {
		t.Errorf("%v", storage)
	}
	if _, err := p.Controller().ControllerListVolumeHealth(ctx, &csi.ControllerListVolumeHealthRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("a list without the pool: %v", err)
	}
	must(t, v.Down(ctx))
}

// The controller is another process: it asks the node over the network.
func TestHealthFromAnotherProcess(t *testing.T) {
	ctx, far, near := t.Context(), home(t), home(t)
	bin, err := binary()
	must(t, err)
	begin := func(dir, mode string) *plugin.Process {
		p, err := plugin.Start(ctx, plugin.Options{Binary: bin, Dir: dir, Mode: mode, Pool: plugin.PoolDir(far), Args: []string{"--control-address=127.0.0.1:0"}})
		must(t, err)
		t.Cleanup(func() { p.CutPower() })
		return p
	}
	n := begin(far, "node")
	c := begin(near, "controller")
	health := func(id string) string {
		r, err := c.Controller().ControllerGetVolumeHealth(ctx, &csi.ControllerGetVolumeHealthRequest{VolumeId: id})
		must(t, err)
		got := ""
		for _, e := range r.GetVolumeHealth().GetHealthStatuses() {
			got += e.GetReason()
		}
		return got
	}
	v, err := c.Create(ctx, "life", 512*mib, kinds["ext4"], nil)
	must(t, err, v.Attach(ctx))
	image, err := plugin.Image(far)
	must(t, err)
	whole, err := os.ReadFile(image)
	must(t, err)
	broken := slices.Clone(whole)
	copy(broken[64<<10:], make([]byte, 128<<10))
	must(t, os.WriteFile(image, broken, 0o600))
	if err := v.On(n).Stage(ctx); err == nil {
		t.Fatal("staged all the same")
	}
	if got := health(v.ID); got != "HeaderCorrupt" {
		t.Errorf("could not be staged: %q", got)
	}
	must(t, os.WriteFile(image, whole, 0o600), v.On(n).Stage(ctx))
	if got := health(v.ID); got != "" {
		t.Errorf("staged: %q", got)
	}
	must(t, v.On(n).Unstage(ctx)) // its directory is not where a new start of the node would look
	n.CutPower()
	if got := health(v.ID); got != "NodeUnreachable" {
		t.Errorf("the node is off: %q", got)
	}
}
