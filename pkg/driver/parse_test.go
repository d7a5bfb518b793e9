package driver

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/google/go-cmp/cmp"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/pool"
)

func TestParseQuantity(t *testing.T) {
	for in, want := range map[string]int64{
		"0": 0, "1": 1, "512": 512, "4Ki": 4096, "32Mi": 32 << 20, "1Gi": 1 << 30, "2Ti": 2 << 40,
		"1k": 1000, "1M": 1e6, "3G": 3e9, "1T": 1e12,
	} {
		if got, err := ParseQuantity(in); err != nil || got != want {
			t.Errorf("ParseQuantity(%q) = %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "Mi", "-1", "+1", "1.5Gi", "1 Gi", "1gi", "0x10", "1Mi1", "1kk", "9223372036854775808", "9000000Ti", "1K", "١Mi"} {
		if got, err := ParseQuantity(in); !errors.Is(err, errInvalid) {
			t.Errorf("ParseQuantity(%q) = %d, %v, want errInvalid", in, got, err)
		}
	}
}

func TestParseClass(t *testing.T) {
	got, err := parseClass(map[string]string{
		"pool": "fast", "subformat": "fixed", "blockSize": "32Mi", "logSize": "8Mi", "logicalSectorSize": "4096",
		"fsType": "xfs", "mkfsOptions": " -K  -b size=4096 ",
		"csi.storage.k8s.io/pvc/name": "claim", "csi.storage.k8s.io/fstype": "xfs",
	})
	if err != nil {
		t.Fatal(err)
	}
	want := class{pool: "fast", params: pool.Params{Fixed: true, BlockSize: 32 << 20, LogSize: 8 << 20,
		LogicalSectorSize: 4096, FSType: "xfs", MkfsOptions: "-K -b size=4096"}}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(class{})); d != "" {
		t.Fatalf("(-want +got)\n%s", d)
	}
}

func TestParseClassRefuses(t *testing.T) {
	for _, bad := range []map[string]string{
		{"Pool": "x"}, {"poool": "x"}, {"pool": ""}, {"subformat": "Dynamic"}, {"subformat": ""},
		{"blockSize": "3Mi"}, {"blockSize": "512Ki"}, {"blockSize": "512Mi"}, {"blockSize": "x"},
		{"logSize": "0"}, {"logSize": "1500Ki"}, {"logSize": "1Gi"}, {"logicalSectorSize": "1024"},
		{"fsType": "ntfs"}, {"fsType": ""}, {"fsType": "ext4", "csi.storage.k8s.io/fstype": "xfs"},
		{"mkfsOptions": "-L 'x y'"}, {"mkfsOptions": "$(reboot)"}, {"mkfsOptions": "a\nb"}, {"mkfsOptions": strings.Repeat("x", 2000)},
	} {
		_, err := parseClass(bad)
		if !errors.Is(err, errInvalid) {
			t.Errorf("parseClass(%q) = %v, want errInvalid", bad, err)
		}
	}
	_, err := parseClass(map[string]string{"bogus": "1"})
	for _, p := range Parameters() {
		if !strings.Contains(err.Error(), p.Key) {
			t.Errorf("the error does not list %s: %v", p.Key, err)
		}
	}
}

// TestParametersDocumented: the reference page has a row for each parameter,
// with the very text that error messages give.
func TestParametersDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/reference/storageclass.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range Parameters() {
		if row := "| `" + p.Key + "` | " + p.Values + " |"; !strings.Contains(string(page), row) {
			t.Errorf("docs/reference/storageclass.md lacks the row %s", row)
		}
	}
}

func TestParseAccess(t *testing.T) {
	type mode = csi.VolumeCapability_AccessMode_Mode
	single := csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER
	for m := range csi.VolumeCapability_AccessMode_Mode_name {
		_, err := parseAccess(block(mode(m)))
		if _, ok := modes[mode(m)]; ok != (err == nil) {
			t.Errorf("%v: %v", mode(m), err)
		}
	}
	for _, bad := range []*csi.VolumeCapability{
		nil, {}, {AccessMode: &csi.VolumeCapability_AccessMode{Mode: single}}, mount(single, "ntfs"),
		{AccessMode: &csi.VolumeCapability_AccessMode{Mode: single}, AccessType: &csi.VolumeCapability_Mount{
			Mount: &csi.VolumeCapability_MountVolume{VolumeMountGroup: "1000"}}},
	} {
		if _, err := parseAccess(bad); !errors.Is(err, errInvalid) {
			t.Errorf("%v: %v, want errInvalid", bad, err)
		}
	}
	if _, _, err := parseAccesses([]*csi.VolumeCapability{mount(single, "ext4"), mount(single, "xfs")}); !errors.Is(err, errInvalid) {
		t.Errorf("two filesystems: %v", err)
	}
	fsType, mounts, err := parseAccesses([]*csi.VolumeCapability{block(single), mount(single, "xfs"), mount(single, "")})
	if fsType != "xfs" || !mounts || err != nil {
		t.Errorf("block or xfs: %q, %v, %v", fsType, mounts, err)
	}
}

func block(m csi.VolumeCapability_AccessMode_Mode) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: m},
		AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
	}
}

func mount(m csi.VolumeCapability_AccessMode_Mode, fsType string, flags ...string) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: m},
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: fsType, MountFlags: flags}},
	}
}

func TestParseRange(t *testing.T) {
	const mi = 1 << 20
	for _, tt := range []struct {
		name          string
		need, limit   int64
		sector, least int64
		wantNeed      int64
		wantErr       error
	}{
		{name: "none", sector: 512},
		{name: "exact", need: 10 * mi, sector: 512, wantNeed: 10 * mi},
		{name: "no block multiple", need: 10*mi + 512, sector: 512, wantNeed: 10*mi + 512},
		{name: "rounded to a sector", need: 1001, sector: 512, wantNeed: 1024},
		{name: "rounded to a large sector", need: 10*mi + 512, sector: 4096, wantNeed: 10*mi + 4096},
		{name: "no room to round", need: 1001, limit: 1002, sector: 512, wantErr: errRange},
		{name: "need is limit", need: mi, limit: mi, sector: 512, wantNeed: mi},
		{name: "need above limit", need: 2 * mi, limit: mi, sector: 512, wantErr: errRange},
		{name: "only a limit", limit: mi, sector: 512},
		{name: "raised for the filesystem", need: mi, sector: 512, least: 300 * mi, wantNeed: 300 * mi},
		{name: "filesystem above limit", need: mi, limit: 2 * mi, sector: 512, least: 300 * mi, wantErr: errRange},
		{name: "filesystem above lone limit", limit: 2 * mi, sector: 512, least: 300 * mi, wantErr: errRange},
		{name: "negative", need: -1, sector: 512, wantErr: errInvalid},
		{name: "negative limit", limit: -1, sector: 512, wantErr: errInvalid},
		{name: "largest", need: maxVolume, sector: 4096, wantNeed: maxVolume},
		{name: "too large", need: maxVolume + 1, sector: 512, wantErr: errRange},
		{name: "largest number", need: 1<<63 - 1, sector: 512, wantErr: errRange},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseRange(&csi.CapacityRange{RequiredBytes: tt.need, LimitBytes: tt.limit}, tt.sector, tt.least)
			if !errors.Is(err, tt.wantErr) {
				t.Fatalf("err %v, want %v", err, tt.wantErr)
			}
			if err == nil && (got.need != tt.wantNeed || got.limit != tt.limit) {
				t.Fatalf("got %+v, want %d to %d", got, tt.wantNeed, tt.limit)
			}
		})
	}
}
