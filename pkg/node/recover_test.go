package node

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// A pod's process still works in the volume when the plugin comes back, and
// its device still serves: nothing is pulled away from it (I-NODE-7).
func TestRecoverKeepsWhatIsInUse(t *testing.T) {
	r := newRig(t)
	r.create("vol", sizes["ext4"], pool.Params{})
	r.kill(victim{FS: "ext4", Calls: []string{"stage", "publish", "write"}})
	target := r.publishTo("vol", "a").TargetPath
	f, err := os.OpenFile(filepath.Join(target, "file"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := r.start()
	if len(got) != 1 || got[0].Outcome != OutcomeKept || got[0].VolumeID != "vol" {
		t.Fatalf("recovered %+v", got)
	}
	wantErr(t, got[0].Err, ErrBusy)
	if !strings.Contains(got[0].Err.Error(), "fuser -vm /dev/loop") {
		t.Fatalf("no way out in %q", got[0].Err)
	}
	if !slices.Contains(r.mounts(), "pods/a") {
		t.Fatalf("mounts: %q", r.mounts())
	}
	wantErr(t, r.m.Stage(t.Context(), r.stage("vol", "ext4")), ErrUnfinished)
	wantErr(t, r.m.Publish(t.Context(), r.publishTo("vol", "b")), ErrNotStaged)
	wantErr(t, r.m.Unpublish(t.Context(), "vol", target), ErrBusy)
	wantErr(t, r.m.Unstage(t.Context(), "vol", r.stage("vol", "").StagingPath), ErrBusy)
	if _, err := r.m.Stats(t.Context(), "vol", target); err == nil {
		t.Fatal("stats of a leftover")
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	r.mustUnpublish(r.publishTo("vol", "a"))
	r.mustUnstage(r.stage("vol", ""))
	r.nothingLeft()
}

// I-NODE-3: numbers and paths of another boot prove nothing.
func TestRecoverAfterReboot(t *testing.T) {
	r := newRig(t)
	r.create("vol", sizes["ext4"], pool.Params{})
	r.start()
	s, p := r.stage("vol", "ext4"), r.publishTo("vol", "a")
	r.mustStage(s)
	r.mustPublish(p)
	v := r.m.volumes["vol"]
	e := v.entry.clone()
	for _, path := range []string{p.TargetPath, s.StagingPath} {
		if err := unix.Unmount(path, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.dev.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Another volume of this boot now has the device's number and the path.
	e.Boot = "another-boot"
	if err := r.m.journal.put(e); err != nil {
		t.Fatal(err)
	}
	r.stop()
	other := rigAt(r.dir)
	other.t = t
	other.create("other", sizes["ext4"], pool.Params{})
	im, err := other.vols.open("other", false)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	other.m = &Manager{cfg: Config{Deadlines: Deadlines{}.filled(), Attacher: other.att}, step: func(string) {}}
	dev := other.attachAs(im)
	if dev != e.Device.Path {
		t.Skipf("got %s, not %s again", dev, e.Device.Path)
	}
	if err := other.m.mkfs(t.Context(), "ext4", "", dev, true); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(dev, p.TargetPath, "ext4", 0, ""); err != nil {
		t.Fatal(err)
	}
	got := r.start()
	if len(got) != 1 || got[0].Outcome != OutcomeDropped {
		t.Fatalf("recovered %+v", got)
	}
	if !slices.Contains(r.mounts(), "pods/a") {
		t.Fatal("a mount of another volume was removed")
	}
	wantErr(t, r.m.Unpublish(t.Context(), "vol", p.TargetPath), ErrForeignMount)
	if err := unix.Unmount(p.TargetPath, 0); err != nil {
		t.Fatal(err)
	}
	r.mustUnpublish(p) // the leftover directory
	r.mustUnstage(s)
}

func (r *rig) attachAs(im *rawImage) string {
	r.t.Helper()
	d, err := r.att.Attach(context.Background(), configOf(im))
	if err != nil {
		r.t.Fatal(err)
	}
	return d.Path()
}

// Garbage in the journal is named, moved away and never fatal.
func TestGarbageInJournal(t *testing.T) {
	r := newRig(t)
	r.create("vol", sizes["ext4"], pool.Params{})
	r.kill(victim{FS: "ext4", Calls: []string{"stage"}})
	dir := r.path("state", entriesDir)
	good, err := os.ReadFile(filepath.Join(dir, entryName("vol")))
	if err != nil {
		t.Fatal(err)
	}
	garbage := map[string][]byte{
		"a.json":              good, // of another volume's name
		entryName("empty"):    nil,
		entryName("cut"):      good[:len(good)/2],
		entryName("two"):      append(slices.Clone(good), good...),
		entryName("root"):     bytes.Replace(bytes.Replace(good, []byte(`"vol"`), []byte(`"root"`), 1), []byte(r.dir), []byte("/.."), 1),
		entryName("newer"):    bytes.Replace(bytes.Replace(good, []byte(`"vol"`), []byte(`"newer"`), 1), []byte(`"version": 1`), []byte(`"version": 9`), 1),
		entryName("large"):    bytes.Repeat([]byte(" "), maxEntry+10),
		"notes from an admin": []byte("hello"),
	}
	for name, b := range garbage {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "directory"), 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, r.path("state", tempDir, ".tmp-0"), "never renamed")
	aside := 0
	for _, x := range r.start() {
		switch x.Outcome {
		case OutcomeSetAside:
			aside++
			if x.Err == nil || !strings.HasPrefix(x.File, setAsideDir+"/") {
				t.Errorf("%+v", x)
			}
		case OutcomeTornDown:
			if x.VolumeID != "vol" {
				t.Errorf("%+v", x)
			}
		default:
			t.Errorf("%+v", x)
		}
	}
	if want := len(garbage) + 3; aside != want {
		t.Fatalf("%d files set aside, want %d", aside, want)
	}
	r.nothingLeft()
	r.mustStage(r.stage("vol", "ext4"))
	// The same garbage again does not replace the first.
	if err := os.WriteFile(filepath.Join(dir, "a.json"), good, 0o600); err != nil {
		t.Fatal(err)
	}
	r.mustUnstage(r.stage("vol", "ext4"))
	r.stop()
	if got := r.start(); len(got) != 1 || got[0].File != setAsideDir+"/a.json.1" {
		t.Fatalf("recovered %+v", got)
	}
}

func TestHostileIDs(t *testing.T) {
	r := newRig(t)
	ids := []string{strings.Repeat("x", 128), "../../etc/passwd", "a/b", ".", "..", "a b\n\t\"'", "\u2028<>&", "CON", "a.json"}
	for _, id := range ids {
		r.create(id, 16*mib, pool.Params{})
	}
	r.start()
	for _, id := range ids {
		r.mustStage(r.stage(id, "ext4"))
	}
	r.stop()
	got := r.start()
	if len(got) != len(ids) {
		t.Fatalf("recovered %d entries, want %d", len(got), len(ids))
	}
	for _, x := range got {
		if x.Outcome != OutcomeTornDown || !slices.Contains(ids, x.VolumeID) {
			t.Errorf("%+v", x)
		}
	}
	r.nothingLeft()
}

// Two plugins on one state directory would tear down each other's devices.
func TestStateDirectoryIsLocked(t *testing.T) {
	r := newRig(t)
	r.start()
	_, err := LockState(canceled(), r.path("state"))
	wantErr(t, err, ErrStateInUse)
}

func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

func TestNothingBeforeRecover(t *testing.T) {
	r := newRig(t)
	m, err := r.open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.journal.close() })
	wantErr(t, m.Stage(t.Context(), r.stage("vol", "")), ErrPending)
}
