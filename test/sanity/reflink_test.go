package sanity

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/test/plugin"
)

// sharingPool is a pool's directory on an XFS whose files can share blocks.
func sharingPool(t *testing.T) string {
	t.Helper()
	needRoot(t)
	base, err := os.MkdirTemp("/dev/shm", "vhdx-xfs-")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(base) })
	image, dir := filepath.Join(base, "disk.img"), filepath.Join(base, "pool")
	must(t, os.WriteFile(image, nil, 0o600), os.Truncate(image, 2*gib), os.Mkdir(dir, 0o700))
	for _, args := range [][]string{{"mkfs.xfs", "-q", "-m", "reflink=1", image}, {"mount", "-o", "loop", image, dir}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v\n%s", err, out)
		}
	})
	return dir
}

// TestReflinkClone: a clone of class cloneMode: reflink takes next to nothing of
// the share, holds what its source held, and outlives it; and neither follows
// what is written to the other.
func TestReflinkClone(t *testing.T) {
	ctx, shared, dir := t.Context(), sharingPool(t), home(t)
	bin, err := binary()
	must(t, err)
	p, err := plugin.Start(ctx, plugin.Options{Binary: bin, Dir: dir, Pool: shared})
	must(t, err)
	t.Cleanup(p.Kill)
	c := plugin.Filesystem("ext4")
	source, err := p.Create(ctx, "source", 512*mib, c, nil)
	must(t, err, source.Up(ctx))
	want := write(t, source, "first", 48*mib)
	must(t, source.Down(ctx))

	free := freeBytes(t, shared)
	r, err := p.Controller().CreateVolume(ctx, &csi.CreateVolumeRequest{
		Name: "clone", VolumeCapabilities: []*csi.VolumeCapability{c}, Parameters: map[string]string{"cloneMode": "reflink"},
		CapacityRange: &csi.CapacityRange{RequiredBytes: 512 * mib},
		VolumeContentSource: &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
			Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: source.ID}}},
	})
	must(t, err)
	took := free - freeBytes(t, shared)
	if took > 24*mib {
		t.Fatalf("a clone of 48 MiB that shares them takes %d bytes", took)
	}
	t.Logf("a clone of 48 MiB takes %d bytes", took)
	clone := *source
	clone.ID = r.GetVolume().GetVolumeId()
	clone.Staging, clone.Target = filepath.Join(dir, "kubelet", "clone", "globalmount"), filepath.Join(dir, "kubelet", "clone", "mount")
	must(t, clone.Up(ctx), source.Up(ctx)) // side by side
	expect(t, &clone, "first", want)
	theirs, mine := write(t, &clone, "theirs", 20*mib), write(t, source, "mine", 8*mib)
	must(t, clone.Down(ctx), source.Down(ctx), source.Up(ctx))
	expect(t, source, "first", want)
	expect(t, source, "mine", mine)
	must(t, source.Down(ctx), source.Delete(ctx), clone.Up(ctx))
	if _, err := os.Stat(dataPath(&clone, "mine")); !os.IsNotExist(err) {
		t.Fatalf("the clone has what was written to its source later: %v", err)
	}
	expect(t, &clone, "first", want)
	expect(t, &clone, "theirs", theirs)
	must(t, clone.Down(ctx), clone.Delete(ctx), p.Stop(ctx))
	if left, err := filepath.Glob(filepath.Join(shared, "images", "*", "*.vhdx")); err != nil || len(left) > 0 {
		t.Fatalf("images left: %q, %v", left, err)
	}
}

func freeBytes(t *testing.T, dir string) int64 {
	t.Helper()
	var st unix.Statfs_t
	must(t, unix.Statfs(dir, &st))
	return int64(st.Bavail) * st.Bsize
}
