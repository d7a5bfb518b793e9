package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/fsx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// A power cut, for real: the pool is on an ext4 whose disk is a file on an xfs.
// Before each step that file is cloned, which is what the disk had been given
// so far; ext4 is told to write back nothing by itself. Then each clone is
// mounted, and ext4 replays its journal.
type powerRig struct {
	t     *testing.T
	dir   string // the xfs
	pool  string // the ext4
	shots []string
}

func newPowerRig(t *testing.T) *powerRig {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to mount filesystems")
	}
	for _, tool := range []string{"mkfs.xfs", "mkfs.ext4"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s", tool)
		}
	}
	base := memDir(t)
	r := &powerRig{t: t, dir: filepath.Join(base, "xfs")}
	sparse(t, base+"/xfs.img", 2<<30)
	run(t, "mkfs.xfs", "-q", "-m", "reflink=1", base+"/xfs.img")
	r.mount(base+"/xfs.img", r.dir, "xfs")
	sparse(t, r.disk(), 96<<20)
	run(t, "mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", r.disk())
	r.mount(r.disk(), filepath.Join(base, "pool"), "ext4")
	r.pool = filepath.Join(base, "pool")
	return r
}

func (r *powerRig) disk() string { return filepath.Join(r.dir, "disk.img") }

// mount mounts an image file until the end of the test.
func (r *powerRig) mount(image, dir, fsType string) (unmount func()) {
	r.t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		r.t.Fatal(err)
	}
	options := ""
	if strings.HasPrefix(image, r.dir+"/") {
		options = "commit=300,noauto_da_alloc"
	}
	loop, err := loopOn(image)
	if err == nil {
		err = unix.Mount(loop.Name(), dir, fsType, 0, options)
		loop.Close() // the mount keeps the device; it goes with it
	}
	if err != nil {
		if r.pool == "" {
			r.t.Skipf("cannot mount here: %v", err)
		}
		r.t.Fatalf("mount %s: %v", image, err)
	}
	mounted := true
	unmount = func() {
		if !mounted {
			return
		}
		mounted = false
		if err := unix.Unmount(dir, 0); err != nil {
			r.t.Errorf("umount %s: %v", dir, err)
		}
	}
	r.t.Cleanup(unmount)
	return unmount
}

// loopOn makes a loop device that goes when nobody has it open any more. It does
// not use mount -o loop, which looks at every loop device there is and waits for
// those whose file does not answer.
func loopOn(image string) (*os.File, error) {
	back, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer back.Close()
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer ctl.Close()
	for try := 0; ; try++ {
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, err
		}
		loop, err := os.OpenFile(fmt.Sprint("/dev/loop", n), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &unix.LoopConfig{
			Fd: uint32(back.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR},
		})
		if err == nil {
			return loop, nil
		}
		loop.Close()
		if !errors.Is(err, unix.EBUSY) || try == 50 { // somebody else was faster
			return nil, err
		}
	}
}

// shoot keeps what the disk has now.
func (r *powerRig) shoot() {
	r.t.Helper()
	name := filepath.Join(r.dir, fmt.Sprintf("shot-%03d.img", len(r.shots)))
	src, err := os.Open(r.disk())
	if err != nil {
		r.t.Fatal(err)
	}
	defer src.Close()
	dst, err := os.Create(name)
	if err != nil {
		r.t.Fatal(err)
	}
	defer dst.Close()
	if err := unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())); err != nil {
		r.t.Skipf("cannot clone a file: %v", err)
	}
	r.shots = append(r.shots, name)
}

// record runs a scenario and shoots the disk before each step and at the end.
// What skip names is left out.
func (r *powerRig) record(sc scenario, skip string) (id string) {
	t, ctx := r.t, context.Background()
	t.Helper()
	s, _ := openSet(t, r.pool)
	id, err := sc.prepare(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	armed := false
	p, err := open(Options{Name: "p", Dir: r.pool, Overcommit: 1000, Holder: "n1"}, func(op, _ string) error {
		if armed && op == skip {
			return fsx.ErrSkip
		}
		if armed && skip == "" {
			r.shoot()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if s, err = NewSet(p); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	armed = true
	if err := sc.run(ctx, s, id); err != nil {
		t.Fatal(err)
	}
	armed = false
	r.shoot()
	return id
}

// replay mounts a shot and hands its pool to check.
func (r *powerRig) replay(shot string, check func(*Set, *Pool)) {
	r.t.Helper()
	dir := strings.TrimSuffix(shot, ".img")
	unmount := r.mount(shot, dir, "ext4")
	s, p := openSet(r.t, dir)
	check(s, p)
	s.Close()
	unmount()
	os.Remove(shot)
}

func TestPowerCut(t *testing.T) {
	stride := 1
	if testing.Short() {
		stride = 9
	}
	for _, sc := range scenarios {
		t.Run(sc.name, func(t *testing.T) {
			r := newPowerRig(t)
			id := r.record(sc, "")
			last := len(r.shots) - 1
			for i := 0; i < last; i += sc.stride(stride) {
				r.replay(r.shots[i], func(s *Set, p *Pool) {
					checkRecovered(t, fmt.Sprintf("cut before step %d", i), sc, s, p, id)
				})
			}
			// What was answered survives without being repeated.
			r.replay(r.shots[last], func(s *Set, _ *Pool) {
				if err := answered(sc, s, id); err != nil {
					t.Fatalf("cut after the answer: %v", err)
				}
			})
			t.Logf("%d power cuts", len(r.shots))
		})
	}
}

// answered checks a pool after a cut that came after the operation's answer.
func answered(sc scenario, s *Set, id string) error {
	ctx := context.Background()
	if _, err := s.Collect(ctx); err != nil {
		return err
	}
	if err := sc.done(ctx, s, id); err != nil {
		return err
	}
	vols, _, err := s.List(ctx, "", 0)
	if err != nil {
		return err
	}
	for _, v := range vols {
		im, err := s.OpenImage(ctx, v.ID, false, vhdx.OpenOptions{})
		if err != nil {
			return err
		}
		if err := im.Close(); err != nil {
			return err
		}
	}
	probs := s.Problems(ctx)
	if len(probs) > 0 {
		return errors.New(probs[0].Path + ": " + probs[0].Reason)
	}
	return nil
}

// TestPowerCutJudge leaves a barrier out and wants that to be noticed. On ext4 a
// later sync of anything makes earlier changes of names and sizes durable too,
// so the barriers that only order those are left to TestOrder.
func TestPowerCutJudge(t *testing.T) {
	for scenarioName, barrier := range map[string]string{
		"create":  "sync",
		"attach":  "sync directory",
		"set use": "sync",
	} {
		t.Run(scenarioName+" without "+barrier, func(t *testing.T) {
			for _, sc := range scenarios {
				if sc.name != scenarioName {
					continue
				}
				r := newPowerRig(t)
				id := r.record(sc, barrier)
				r.replay(r.shots[0], func(s *Set, _ *Pool) {
					if err := answered(sc, s, id); err == nil {
						t.Fatal("nothing was noticed")
					} else {
						t.Logf("noticed: %v", err)
					}
				})
			}
		})
	}
}

func sparse(t *testing.T, name string, size int64) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}
