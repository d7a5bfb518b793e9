package ondisk

import (
	"encoding/hex"
	"testing"

	"github.com/google/uuid"
	"pgregory.net/rapid"
)

func TestKnownGUIDs(t *testing.T) {
	tests := []struct {
		name        string
		guid        GUID
		bytes, text string
	}{
		{"BAT", RegionBAT, "6677c22d23f600429d64115e9bfd4a08", "2dc27766-f623-4200-9d64-115e9bfd4a08"},
		{"Metadata", RegionMetadata, "06a27c8b90479a4bb8fe575f050f886e", "8b7ca206-4790-4b9a-b8fe-575f050f886e"},
		{"File Parameters", ItemFileParameters, "3767a1ca36fa434db3b633f0aa44e76b", "caa16737-fa36-4d43-b3b6-33f0aa44e76b"},
		{"Virtual Disk Size", ItemVirtualDiskSize, "2442a52f1bcd7648b2115dbed83bf4b8", "2fa54224-cd1b-4876-b211-5dbed83bf4b8"},
		{"Virtual Disk ID", ItemVirtualDiskID, "ab12cabee6b2234593efc309e000c746", "beca12ab-b2e6-4523-93ef-c309e000c746"},
		{"Logical Sector Size", ItemLogicalSectorSize, "1dbf41816fa90947ba47f233a8faab5f", "8141bf1d-a96f-4709-ba47-f233a8faab5f"},
		{"Physical Sector Size", ItemPhysicalSectorSize, "c748a3cd5d4471449cc9e9885251c556", "cda348c7-445d-4471-9cc9-e9885251c556"},
		{"Parent Locator", ItemParentLocator, "2d5fd3a80bb34d45abf7d3d84834ab0c", "a8d35f2d-b30b-454d-abf7-d3d84834ab0c"},
		{"locator type", LocatorTypeVHDX, "b7ef4ab09ed1814ab78925b8e9445913", "b04aefb7-d19e-4a81-b789-25b8e9445913"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := hex.EncodeToString(tt.guid[:]); got != tt.bytes {
				t.Fatalf("bytes %s, want %s", got, tt.bytes)
			}
			if got := tt.guid.String(); got != tt.text {
				t.Fatalf("text %s, want %s", got, tt.text)
			}
			if got := FromUUID(uuid.MustParse(tt.text)); got != tt.guid {
				t.Fatalf("from UUID: %v", got)
			}
		})
	}
}

func TestParseGUID(t *testing.T) {
	const text = "2dc27766-f623-4200-9d64-115e9bfd4a08"
	for _, s := range []string{text, "{" + text + "}", "{2DC27766-F623-4200-9D64-115E9BFD4A08}"} {
		if g, err := ParseGUID(s); err != nil || g != RegionBAT {
			t.Fatalf("%q: %v, %v", s, g, err)
		}
	}
	for _, s := range []string{"", "{}", "{" + text, text + "}", text[1:], "urn:uuid:" + text, "2dc27766f62342009d64115e9bfd4a08", "zdc27766-f623-4200-9d64-115e9bfd4a08"} {
		if g, err := ParseGUID(s); err == nil {
			t.Fatalf("%q accepted as %v", s, g)
		}
	}
}

func TestGUIDRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := genGUID.Draw(t, "guid")
		if got := FromUUID(g.UUID()); got != g {
			t.Fatalf("through UUID: %v, want %v", got, g)
		}
		if got, err := ParseGUID(g.String()); err != nil || got != g {
			t.Fatalf("through text: %v, %v; want %v", got, err, g)
		}
	})
	if a, b := NewGUID(), NewGUID(); a == b || NewGUID().IsZero() || !(GUID{}).IsZero() {
		t.Fatal("new GUIDs are neither zero nor equal")
	}
}
