package sanity

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-vhdx/csi-driver-vhdx/test/plugin"
)

const (
	mib = 1 << 20
	gib = 1 << 30
)

// kinds are the ways to use a volume.
var kinds = map[string]*csi.VolumeCapability{
	"ext4":  plugin.Filesystem("ext4"),
	"xfs":   plugin.Filesystem("xfs"),
	"btrfs": plugin.Filesystem("btrfs"),
	"block": plugin.Raw(),
}

// TestLifecycle takes a volume of each kind from creation to deletion, with
// data that must be there after each turn, and QEMU as the judge of its file.
func TestLifecycle(t *testing.T) {
	for kind, c := range kinds {
		t.Run(kind, func(t *testing.T) {
			ctx, dir := t.Context(), home(t)
			p := start(t, dir)
			v, err := p.Create(ctx, "life", 512*mib, c, nil)
			must(t, err)
			must(t, v.Up(ctx))
			if left, err := plugin.Leftovers(dir); err != nil || !strings.Contains(strings.Join(left, "\n"), "loop device") {
				t.Fatalf("a published volume shows no loop device (%v): %q", err, left)
			}
			want := write(t, v, "first", 7*mib+4096)
			u, err := v.Stats(ctx)
			if err != nil || u.GetTotal() < 256*mib || u.GetTotal() > 512*mib {
				t.Fatalf("statistics %v, %v", u, err)
			}
			must(t, v.Down(ctx))
			image, err := plugin.Image(dir)
			must(t, err)
			qemuCheck(t, image)

			must(t, v.Up(ctx))
			expect(t, v, "first", want)
			err = v.Expand(ctx, gib+4096) // no multiple of a block
			if kind == "ext4" && !plugin.GrowsExt4Online() {
				if status.Code(errors.Unwrap(err)) != codes.FailedPrecondition {
					t.Fatalf("growing ext4 online without the right to: %v", err)
				}
				must(t, v.Down(ctx), v.Up(ctx)) // it follows at the next stage
			} else {
				must(t, err)
			}
			bigger, err := v.Stats(ctx)
			if err != nil || bigger.GetTotal() <= u.GetTotal()+256*mib {
				t.Fatalf("after growing from %v: %v, %v", u, bigger, err)
			}
			expect(t, v, "first", want)
			must(t, v.Down(ctx))
			qemuCheck(t, image)
			must(t, v.Delete(ctx), v.Delete(ctx))
			if found, err := plugin.Images(dir); err != nil || len(found) != 0 {
				t.Fatalf("images left: %q, %v", found, err)
			}
		})
	}
}

// write puts n bytes into a file of the volume, or at its beginning, syncs
// them, and returns their hash.
func write(t *testing.T, v *plugin.Volume, name string, n int) [sha256.Size]byte {
	t.Helper()
	data := bytes.Repeat([]byte(name+"."), n/len(name)+1)[:n]
	f, err := os.OpenFile(dataPath(v, name), os.O_RDWR|os.O_CREATE, 0o600)
	must(t, err)
	_, err = f.Write(data)
	must(t, err, f.Sync(), f.Close())
	return sha256.Sum256(data)
}

// expect reads what write has written.
func expect(t *testing.T, v *plugin.Volume, name string, want [sha256.Size]byte) {
	t.Helper()
	const most = 64 * mib
	f, err := os.Open(dataPath(v, name))
	must(t, err)
	defer f.Close()
	h := sha256.New()
	limit := int64(most)
	if v.Cap.GetBlock() != nil {
		limit = 7*mib + 4096
	}
	_, err = io.Copy(h, io.LimitReader(f, limit))
	must(t, err)
	if got := [sha256.Size]byte(h.Sum(nil)); got != want {
		t.Fatalf("%s: the data has changed: %x, want %x", name, got, want)
	}
}

func dataPath(v *plugin.Volume, name string) string {
	if v.Cap.GetBlock() != nil {
		return v.Target
	}
	return filepath.Join(v.Target, name)
}
