package sanity

import (
	"fmt"
	"os/exec"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-vhdx/csi-driver-vhdx/test/plugin"
)

// TestLimitsLive changes a volume's limit under I/O to one with which that does
// not end in the life of the test, kills the plugin again and again, and takes the
// limit away: the I/O ends then, and not before.
func TestLimitsLive(t *testing.T) {
	for kind, c := range kinds {
		if testing.Short() && kind != "block" {
			continue
		}
		t.Run(kind, func(t *testing.T) {
			ctx, dir := t.Context(), home(t)
			p := start(t, dir)
			v, err := p.Create(ctx, "life", 512*mib, c, nil)
			must(t, err, v.Up(ctx))
			modify := func(p *plugin.Process, params map[string]string) {
				t.Helper()
				_, err := p.Controller().ControllerModifyVolume(ctx, &csi.ControllerModifyVolumeRequest{VolumeId: v.ID, MutableParameters: params})
				must(t, err)
			}
			want := write(t, v, "before", 7*mib+4096)
			modify(p, map[string]string{"bandwidth": "1"})
			ended := make(chan error, 1)
			dd := exec.Command("dd", "if="+dataPath(v, "before"), "of=/dev/null", "bs=4096", "count=200", "iflag=direct")
			must(t, dd.Start())
			go func() {
				if err := dd.Wait(); err != nil {
					ended <- fmt.Errorf("dd: %w", err)
				}
				close(ended)
			}()
			for range 2 {
				p.Kill() // an orderly end would lift the limit first
				p = start(t, dir)
				v = v.On(p)
			}
			select {
			case err := <-ended:
				t.Fatalf("under the limit all is read already, %v", err)
			default:
			}
			modify(p, map[string]string{"bandwidth": "0"})
			must(t, <-ended)
			expect(t, v, "before", want)
			must(t, v.Down(ctx))
		})
	}
}
