package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/csi-vhdx/csi-driver-vhdx/internal/deathpoint"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/blockdev/fuseloop"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/node"
	"github.com/csi-vhdx/csi-driver-vhdx/test/plugin"
)

// build builds the plugin and this program once.
var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "vhdx-chaos-build-")
	if err != nil {
		return "", err
	}
	builds = dir
	return dir, plugin.BuildTagged(dir, "chaos", "cmd/vhdx-csi", "test/chaos")
})

var builds string // to be removed at the end

func TestMain(m *testing.M) {
	code := m.Run()
	if builds != "" {
		_ = os.RemoveAll(builds)
	}
	os.Exit(code)
}

// run is this program as a process of its own, which cleans up when it is
// interrupted, and when the test ends before it.
type run struct {
	cmd         *exec.Cmd
	out, errors bytes.Buffer
	dir         string
	ended       chan error
}

func start(t *testing.T, args ...string) *run {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts filesystems and makes loop devices")
	}
	bin, err := build()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "vc-") // short, for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	r := &run{dir: dir, ended: make(chan error, 1)}
	r.cmd = exec.Command(filepath.Join(bin, "chaos"), append([]string{"--dir=" + dir, "--json"}, args...)...)
	r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.errors
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // whose end would be taken for the test's
		defer runtime.UnlockOSThread()
		err := r.cmd.Start()
		started <- err
		if err == nil {
			r.ended <- r.cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	return r
}

// tidy fails if anything is left of it.
func (r *run) tidy(t *testing.T) {
	t.Helper()
	left, err := plugin.Leftovers(r.dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left on the machine (%v):\n%s", err, strings.Join(left, "\n"))
	}
	own, err := ownGroups("/proc/self/cgroup")
	if err != nil {
		t.Error(err)
	}
	for _, g := range own {
		if left, _ := filepath.Glob(fmt.Sprintf("%s/vhdx-chaos-%d-*", g.dir, r.cmd.Process.Pid)); len(left) > 0 {
			t.Errorf("cgroups left: %q", left)
		}
	}
	files, err := os.ReadDir(r.dir)
	if err != nil || len(files) > 0 {
		t.Errorf("left in %s: %v, %v", r.dir, files, err)
		return
	}
	_ = os.Remove(r.dir)
}

// TestChaos: no I/O error and no wrong byte, however often the worker dies and
// wherever. The program itself fails on points that are never reached.
func TestChaos(t *testing.T) {
	kills := 100
	if testing.Short() {
		kills = 8
	}
	r := start(t, fmt.Sprintf("--kills=%d", kills))
	if err := <-r.ended; err != nil {
		t.Fatalf("%v\n%s%s", err, r.errors.Bytes(), r.out.Bytes())
	}
	var s summary
	if err := json.Unmarshal(r.out.Bytes(), &s); err != nil {
		t.Fatalf("%v\n%s", err, r.out.Bytes())
	}
	if s.Kills < kills || s.IOErrors != 0 || s.WrongBytes != 0 || s.ReadBack == 0 {
		t.Errorf("%+v", s)
	}
	g := s.Gaps[allButHangs]
	t.Attr("kills", fmt.Sprintf("%d, gap p50 %.0f ms, p99 %.0f ms", s.Kills, g.P50, g.P99))
	r.tidy(t)
}

// TestInterrupted: Ctrl-C leaves nothing.
func TestInterrupted(t *testing.T) {
	for _, after := range []time.Duration{300 * time.Millisecond, 3 * time.Second} {
		t.Run(after.String(), func(t *testing.T) {
			r := start(t, "--kills=100000")
			time.Sleep(after)
			if err := r.cmd.Process.Signal(syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
			x, ok := errors.AsType[*exec.ExitError](<-r.ended)
			if !ok || x.ExitCode() != interrupted {
				t.Errorf("exit code %d, want %d\n%s", x.ExitCode(), interrupted, r.errors.Bytes())
			}
			r.tidy(t)
		})
	}
}

// Each function that runs in a child has its point.
func TestEveryHelperHasAPoint(t *testing.T) {
	points := map[string]bool{}
	for _, p := range deathpoint.All() {
		points[p.String()] = true
	}
	for _, c := range append(fuseloop.Commands(), node.Commands()...) {
		if !points["helper:"+c.Name] {
			t.Errorf("no point helper:%s", c.Name)
		}
	}
}

// A plan of 100 kills has every kind and every point that a death leads to.
func TestPlanIsComplete(t *testing.T) {
	kinds, points := map[kind]bool{}, map[deathpoint.Point]bool{}
	shots := plan(allPoints, nil, rand.New(rand.NewPCG(1, 2)))
	kills := 0
	for _, s := range shots {
		kills += s.kills()
		kinds[s.kind] = true
		points[s.point] = true
	}
	if kills != allPoints {
		t.Errorf("a plan of %d kills has %d: not all of it would be run", allPoints, kills)
	}
	for _, k := range []kind{killAtRandom, killAtPoint, killSuccessor, killCalls, killStopped, killHang, killOOM, killPressure, killSupervisor, killKeeper, restart} {
		if !kinds[k] {
			t.Errorf("no kill %s", k)
		}
	}
	for _, p := range deathpoint.All() {
		if !points[p] && unreached[p] == "" {
			t.Errorf("no death at %v", p)
		}
	}
	again := plan(allPoints, nil, rand.New(rand.NewPCG(1, 2)))
	if diff := cmp.Diff(shots, again, cmp.AllowUnexported(shot{})); diff != "" {
		t.Errorf("the same seed makes another plan:\n%s", diff)
	}
	for _, s := range plan(10, regexp.MustCompile("^commit:"), rand.New(rand.NewPCG(1, 2))) {
		if !strings.HasPrefix(s.point.String(), "commit:") {
			t.Errorf("--only=^commit: gives %v", s)
		}
	}
}

// What a comparison finds: bytes of another sector, of another write, zeros
// where there were none, and none where there were.
func TestCompareFindsDamage(t *testing.T) {
	known := space{}
	known.set(3*pageSize, 2*pageSize, 7)
	known.set(4*pageSize, sectorSize, 0)
	good := make([]byte, 4*pageSize)
	fill(good[pageSize:3*pageSize], 3*pageSize, 7)
	clear(good[2*pageSize : 2*pageSize+sectorSize])
	wrong := func(p []byte) (at []int64) {
		known.compare(p, 2*pageSize, func(off int64, _ uint32, _ []byte) { at = append(at, off) })
		return at
	}
	if got := wrong(good); got != nil {
		t.Fatalf("finds damage at %x in what is right", got)
	}
	for _, c := range []struct {
		name   string
		damage func(p []byte)
		want   []int64
	}{
		{"one bit", func(p []byte) { p[pageSize+sectorSize+5] ^= 1 }, []int64{3*pageSize + sectorSize}},
		{"another write", func(p []byte) { fill(p[pageSize:][:sectorSize], 3*pageSize, 6) }, []int64{3 * pageSize}},
		{"another place", func(p []byte) { fill(p[pageSize:][:sectorSize], 5*pageSize, 7) }, []int64{3 * pageSize}},
		{"zeros", func(p []byte) { clear(p[pageSize:][:sectorSize]) }, []int64{3 * pageSize}},
		{"no zeros after a discard", func(p []byte) { p[2*pageSize] = 1 }, []int64{4 * pageSize}},
		{"foreign bytes", func(p []byte) { p[0] = 1 }, []int64{2 * pageSize}},
	} {
		p := bytes.Clone(good)
		c.damage(p)
		if diff := cmp.Diff(c.want, wrong(p)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

func TestOwnFailuresAreFound(t *testing.T) {
	head := `I1123 09:00:00.000000 1 supervise.go:70] "Worker ended, starts anew" process=7 cause=`
	for _, c := range []struct {
		line string
		fine bool
	}{
		{head + `"signal: killed" life="1s"`, true},
		{head + `"no heartbeat for 10s" life="1s"`, true},
		{head + `"dying: its main thread has ended, another one waits in the kernel"`, true},
		{head + `"exit status 2" life="1s"`, false},
		{head + `"signal: segmentation fault" life="1s"`, false},
		{"WARNING: DATA RACE", false},
		{"panic: runtime error", false},
		{"nothing in particular", true},
	} {
		path := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(path, []byte("first line\n"+c.line+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := ownFailures(path); (err == nil) != c.fine {
			t.Errorf("%s: %v", c.line, err)
		}
	}
}
