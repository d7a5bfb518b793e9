package node

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

// setUse puts the record into a state.
func (r *rig) setUse(id string, u pool.Use) {
	r.t.Helper()
	if err := r.vols.set(id, "", func(v *pool.Volume) { v.Use = u }); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) run(name string, args ...string) {
	r.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		r.t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
}

func (r *rig) scribble(id string, off int64, b string) {
	r.t.Helper()
	f, err := os.OpenFile(r.vols.file(id), os.O_WRONLY, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	_, err = f.WriteAt([]byte(b), off)
	if err := errors.Join(err, f.Close()); err != nil {
		r.t.Fatal(err)
	}
}

// used is a volume with one file on a filesystem of this type.
func (r *rig) used(id, fsType string) {
	r.t.Helper()
	r.mustStage(r.stage(id, fsType))
	writeFile(r.t, filepath.Join(r.stage(id, "").StagingPath, "file"), "content")
	r.mustUnstage(r.stage(id, fsType))
	r.steps = nil
}

// I-NODE-4: data without a readable filesystem is never formatted, whatever
// the record says, and not one byte of it changes.
func TestNeverFormatData(t *testing.T) {
	zero := strings.Repeat("\x00", 4096)
	for _, fsType := range fsTypes {
		off := map[string]int64{"ext4": ext4Super, "xfs": 0, "btrfs": btrfsSuper}[fsType]
		for name, damage := range map[string]string{"zeroed": zero, "garbage": strings.Repeat("garbage!", 512)} {
			for _, use := range []pool.Use{pool.UseMounted, pool.UseNever} {
				t.Run(fsType+"/"+name+"/"+string(use), func(t *testing.T) {
					r := newRig(t)
					r.create("vol", sizes[fsType], pool.Params{})
					r.start()
					r.used("vol", fsType)
					r.scribble("vol", off, damage)
					r.setUse("vol", use)
					before := r.cut("vol")
					wantErr(t, r.m.Stage(t.Context(), r.stage("vol", fsType)), ErrNoFilesystem)
					if r.formatted() || r.vols.use(t, "vol") != use {
						t.Fatal("mkfs ran on data")
					}
					r.wantUnchanged("vol", before)
					r.nothingLeft()
				})
			}
		}
	}
}

// Damage behind a superblock that can still be read: a person is needed.
func TestDamagedFilesystem(t *testing.T) {
	r := newRig(t)
	r.create("vol", sizes["ext4"], pool.Params{})
	r.start()
	r.used("vol", "ext4")
	r.run("debugfs", "-w", "-R", "clri <2>", r.vols.file("vol")) // the root directory
	r.run("debugfs", "-w", "-R", "ssv state 2", r.vols.file("vol"))
	err := r.m.Stage(t.Context(), r.stage("vol", "ext4"))
	wantErr(t, err, ErrNoFilesystem)
	if !strings.Contains(err.Error(), "e2fsck") || r.formatted() {
		t.Fatalf("no way out in %v", err)
	}
	r.nothingLeft()
}

// A superblock that has its magic number and a wrong checksum.
func TestDamagedSuperblock(t *testing.T) {
	r := newRig(t)
	r.create("vol", sizes["ext4"], pool.Params{})
	r.start()
	r.used("vol", "ext4")
	r.scribble("vol", ext4Super+0x78, "another label")
	before := r.cut("vol")
	wantErr(t, r.m.Stage(t.Context(), r.stage("vol", "ext4")), ErrNoFilesystem)
	if r.formatted() {
		t.Fatal("mkfs ran on data")
	}
	r.wantUnchanged("vol", before)
}

// What e2fsck repairs without a person is repaired before the mount.
func TestCheckBeforeMount(t *testing.T) {
	r := newRig(t)
	r.create("vol", sizes["ext4"], pool.Params{})
	r.start()
	r.used("vol", "ext4")
	r.run("debugfs", "-w", "-R", "ssv free_blocks_count 7", r.vols.file("vol"))
	r.run("debugfs", "-w", "-R", "ssv state 2", r.vols.file("vol"))
	r.mustStage(r.stage("vol", "ext4"))
	s, err := r.m.Stats(t.Context(), "vol", r.stage("vol", "").StagingPath)
	if err != nil || s.Bytes.Available < 10*mib {
		t.Fatalf("not repaired: %+v, %v", s, err)
	}
	wantFile(t, filepath.Join(r.stage("vol", "").StagingPath, "file"), "content")
}

// A medium that cannot be read is not blank.
func TestUnreadableImage(t *testing.T) {
	for _, use := range []pool.Use{pool.UseNever, pool.UseFormatting, pool.UseMounted} {
		r := newRig(t)
		r.create("vol", sizes["ext4"], pool.Params{})
		r.start()
		r.setUse("vol", use)
		cause := errors.New("made by the test")
		r.vols.failing("read", cause)
		err := r.m.Stage(t.Context(), r.stage("vol", "ext4"))
		wantErr(t, err, cause)
		if r.formatted() || errors.Is(err, ErrNoFilesystem) {
			t.Fatalf("%s: taken for blank: %v", use, err)
		}
		r.nothingLeft()
	}
}

func TestOtherFilesystem(t *testing.T) {
	r := newRig(t)
	r.create("vol", sizes["xfs"], pool.Params{})
	r.start()
	r.used("vol", "xfs")
	for _, other := range []string{"ext4", "btrfs"} {
		err := r.m.Stage(t.Context(), r.stage("vol", other))
		wantErr(t, err, ErrNoFilesystem)
		if !strings.Contains(err.Error(), "holds xfs") {
			t.Fatal(err)
		}
	}
	if r.formatted() {
		t.Fatal("formatted")
	}
}

// A volume that was made elsewhere: the record says never, the image is not blank.
func TestImportedFilesystem(t *testing.T) {
	r := newRig(t)
	r.create("vol", sizes["ext4"], pool.Params{})
	r.start()
	r.used("vol", "ext4")
	r.setUse("vol", pool.UseNever)
	r.mustStage(r.stage("vol", "ext4"))
	wantFile(t, filepath.Join(r.stage("vol", "").StagingPath, "file"), "content")
	if r.formatted() || r.vols.use(t, "vol") != pool.UseMounted {
		t.Fatal("not taken over")
	}
}

// What an unfinished format has left is wiped; a filesystem that somebody has
// used is kept even when the record was read too old (I-NODE-4).
func TestFormattingState(t *testing.T) {
	for _, fixed := range []bool{false, true} {
		r := newRig(t)
		r.create("vol", sizes["btrfs"], pool.Params{Fixed: fixed})
		r.start()
		r.scribble("vol", 0, strings.Repeat("half a filesystem", 1000))
		r.scribble("vol", 70*mib, "rest of it")
		r.setUse("vol", pool.UseFormatting)
		wantErr(t, r.m.Stage(t.Context(), StageRequest{VolumeID: "vol", StagingPath: r.path("s"), ReadOnly: true}), ErrNoFilesystem)
		r.mustStage(r.stage("vol", "ext4"))
		if !r.formatted() || r.vols.use(t, "vol") != pool.UseMounted {
			t.Fatal("not formatted")
		}
		r.mustUnstage(r.stage("vol", "ext4"))

		// Formatted to the end, never mounted: of no value.
		r.run("mkfs.ext4", "-q", "-F", r.vols.file("vol"))
		r.setUse("vol", pool.UseFormatting)
		r.mustStage(r.stage("vol", "ext4"))
		r.mustUnstage(r.stage("vol", "ext4"))

		for _, fsType := range []string{"ext4", "btrfs"} {
			r.setUse("vol", pool.UseFormatting)
			r.scribble("vol", 0, strings.Repeat("\x00", 2<<20))
			r.used("vol", fsType)
			r.setUse("vol", pool.UseFormatting)
			r.mustStage(r.stage("vol", fsType))
			wantFile(t, filepath.Join(r.stage("vol", "").StagingPath, "file"), "content")
			r.mustUnstage(r.stage("vol", fsType))
		}
		r.nothingLeft()
	}
}

func TestFormattingStateOfXFS(t *testing.T) {
	r := newRig(t)
	r.create("vol", sizes["xfs"], pool.Params{})
	r.start()
	// mkfs.xfs killed: sb_inprogress is still set.
	r.run("mkfs.xfs", "-q", r.vols.file("vol"))
	r.scribble("vol", 126, "\x01")
	r.setUse("vol", pool.UseFormatting)
	r.used("vol", "xfs")
	r.setUse("vol", pool.UseFormatting)
	r.mustStage(r.stage("vol", "xfs"))
	wantFile(t, filepath.Join(r.stage("vol", "").StagingPath, "file"), "content")
}

func TestThinAfterFormat(t *testing.T) {
	most := map[string]int64{"ext4": 8 * mib, "xfs": 72 * mib /* its log */, "btrfs": 8 * mib}
	for _, fsType := range fsTypes {
		r := newRig(t)
		r.create("vol", 8*gib, pool.Params{})
		r.start()
		r.mustStage(r.stage("vol", fsType))
		r.mustUnstage(r.stage("vol", fsType))
		out, err := exec.Command("du", "-B1", r.vols.file("vol")).Output()
		if err != nil {
			t.Fatal(err)
		}
		var used int64
		for _, c := range strings.Fields(string(out))[0] {
			used = used*10 + int64(c-'0')
		}
		t.Logf("%s of 8 GiB takes %d KiB", fsType, used>>10)
		if used > most[fsType] {
			t.Errorf("%s of 8 GiB takes %d bytes", fsType, used)
		}
	}
}

func TestGrowAtStage(t *testing.T) {
	for _, fsType := range fsTypes {
		t.Run(fsType, func(t *testing.T) {
			r := newRig(t)
			from := max(sizes[fsType], 64*mib)
			to := max(2*from, 512*mib)
			r.create("vol", from, pool.Params{})
			r.start()
			r.used("vol", fsType)
			if err := r.vols.set("vol", "", func(v *pool.Volume) { v.Size = to }); err != nil {
				t.Fatal(err)
			}
			r.mustStage(r.stage("vol", fsType))
			s, err := r.m.Stats(t.Context(), "vol", r.stage("vol", "").StagingPath)
			if err != nil || s.Bytes.Total < to*8/10 {
				t.Fatalf("filesystem has %d bytes of %d, %v", s.Bytes.Total, to, err)
			}
			wantFile(t, filepath.Join(r.stage("vol", "").StagingPath, "file"), "content")
			r.mustUnstage(r.stage("vol", fsType))
		})
	}
}

// growable must agree with resize2fs, or every stage costs a full check.
func TestGrowableAgreesWithResize2fs(t *testing.T) {
	r := newRig(t)
	file := r.path("image")
	const from = 200 * mib
	for _, add := range []int64{0, 4096, 1 * mib, 2 * mib, 3 * mib, 5 * mib, 40 * mib, 57 * mib, 58 * mib, 60 * mib, 64 * mib, 100 * mib} {
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(file, from); err != nil {
			t.Fatal(err)
		}
		name, args := mkfsCommand("ext4", nil, file, true)
		r.run(name, args...)
		if err := os.Truncate(file, from+add); err != nil {
			t.Fatal(err)
		}
		before := r.super(file)
		want := before.growable(from + add)
		r.run("resize2fs", "-f", file)
		after := r.super(file)
		if got := after.ext4.blocks > before.ext4.blocks; got != want {
			t.Errorf("%d bytes more: growable says %v, resize2fs did %v", add, want, got)
		}
		if after.growable(from + add) {
			t.Errorf("%d bytes more: still growable after resize2fs", add)
		}
	}
}

func (r *rig) super(file string) superblock {
	r.t.Helper()
	f, err := os.Open(file)
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	s, err := readSuperblock(f, superBytes, "ext4")
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

func TestMkfsOptionsAreUsed(t *testing.T) {
	r := newRig(t)
	r.create("vol", sizes["ext4"], pool.Params{FSType: "ext4", MkfsOptions: `-L "my disk" -E stride=4 -b 1024 -m5`})
	r.create("four", sizes["xfs"], pool.Params{FSType: "xfs", MkfsOptions: "-L data", LogicalSectorSize: 4096})
	r.start()
	r.mustStage(r.stage("vol", ""))
	r.mustStage(r.stage("four", ""))
	out, err := exec.Command("dumpe2fs", "-h", r.vols.file("vol")).Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"my disk", "RAID stride:              4", "Block size:               1024", "Remount read-only"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in %s", want, out)
		}
	}
}
