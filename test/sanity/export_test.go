package sanity

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/test/plugin"
)

// tool runs vhdxctl and returns what it prints.
func tool(t *testing.T, bin string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), bin, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("vhdxctl %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// TestExportAndImport copies a volume out of the hands of a plugin that has it
// mounted, puts two checkpoints on the copy as Hyper-V does, and makes a volume of that
// chain.
func TestExportAndImport(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			ctx, dir := t.Context(), home(t)
			bin, err := binary()
			must(t, err)
			must(t, plugin.Build(dir, "vhdxctl"))
			ctl := filepath.Join(dir, "vhdxctl")
			p, err := plugin.Start(ctx, plugin.Options{Binary: bin, Dir: dir, Mode: "all", Args: []string{"--control-address=127.0.0.1:0"}})
			must(t, err)
			t.Cleanup(func() { stopAnyway(t, p) })
			v, err := p.Create(ctx, "data", 512*mib, kinds[kind], nil)
			must(t, err, v.Up(ctx))
			one := write(t, v, "one", 3*mib)
			// Not synced: that the filesystem is frozen for the copy brings it there.
			must(t, os.WriteFile(dataPath(v, "two"), []byte("not synced"), 0o600))

			incoming := filepath.Join(dir, "incoming")
			must(t, os.Mkdir(incoming, 0o700))
			file := func(name string) string { return filepath.Join(incoming, name) }
			if said := tool(t, ctl, "pool", "export", "--pool", plugin.PoolDir(dir), v.ID, file("base.vhdx")); !strings.Contains(said, "consistency filesystem") {
				t.Errorf("%s", said)
			}
			write(t, v, "one", 5*mib) // the volume goes on, and the copy does not see that
			tool(t, ctl, "check", file("base.vhdx"))
			left, err := filepath.Glob(filepath.Join(plugin.PoolDir(dir), "cuts", "*", "*.json"))
			must(t, err)
			if len(left) > 0 {
				t.Errorf("left: %v", left)
			}

			tool(t, ctl, "child", file("base.vhdx"), file("one.avhdx"))
			tool(t, ctl, "child", file("one.avhdx"), file("two.avhdx"))
			var made struct {
				ID string `json:"id"`
			}
			must(t, json.Unmarshal([]byte(tool(t, ctl, "--json", "pool", "import", "--pool", plugin.PoolDir(dir), "--overcommit", "100", "--name", "chain", "--fs-type", kind, file("two.avhdx"))), &made))
			w := v.On(p)
			w.ID, w.Staging, w.Target = made.ID, filepath.Join(dir, "kubelet", "chain", "globalmount"), filepath.Join(dir, "kubelet", "chain", "mount")
			must(t, w.Up(ctx))
			expect(t, w, "one", one)
			if b, err := os.ReadFile(dataPath(w, "two")); err != nil || string(b) != "not synced" {
				t.Errorf("%q, %v", b, err)
			}
			three := write(t, w, "three", mib)
			must(t, w.Down(ctx), w.Up(ctx))
			expect(t, w, "one", one)
			expect(t, w, "three", three)
			tool(t, ctl, "pool", "problems", "--pool", plugin.PoolDir(dir))
			for _, x := range []*plugin.Volume{v, w} {
				must(t, x.Down(ctx), x.Delete(ctx))
			}
			if left, err := plugin.Images(dir); err != nil || len(left) > 0 {
				t.Errorf("left: %v, %v", left, err)
			}
			stop(t, p)
		})
	}
}

// stopAnyway ends a plugin that its test has not.
func stopAnyway(t *testing.T, p *plugin.Process) {
	t.Helper()
	select {
	case <-p.Done():
	default:
		p.Kill()
	}
}
