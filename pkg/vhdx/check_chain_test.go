package vhdx_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

// fuzzChild is a differencing image of 5 MiB in blocks of 1 MiB: block 0 fully
// present, block 1 in parts, the others the parent's.
func fuzzChild() (*vhdxtest.File, error) {
	child, _, err := fuzzFamily()
	return child, err
}

// fuzzFamily is fuzzChild and its parent.
func fuzzFamily() (child, base *vhdxtest.File, err error) {
	base = vhdxtest.NewFile("base.vhdx")
	if _, err := vhdx.CreateOn(base, vhdx.CreateOptions{Size: 5 * mib, BlockSize: mib}); err != nil {
		return nil, nil, err
	}
	im, err := vhdx.Open(base, vhdx.OpenOptions{ReadOnly: true})
	if err != nil {
		return nil, nil, err
	}
	child = vhdxtest.NewFile("child.vhdx")
	_, err = im.CreateChildOn(child, vhdx.ChildOptions{BlockSize: mib, RelativePath: "base.vhdx"})
	if err := errors.Join(err, im.Close()); err != nil {
		return nil, nil, err
	}
	im, err = vhdx.Open(child, vhdx.OpenOptions{GrowthStep: mib, Parents: oneParent{base}})
	if err != nil {
		return nil, nil, err
	}
	_, err = im.WriteAt(bytes.Repeat([]byte{1}, int(mib)), 0)
	_, err2 := im.WriteAt(bytes.Repeat([]byte{2}, 8192), mib+4096)
	return child, base, errors.Join(err, err2, im.Close())
}

// oneParent answers every path with one file.
type oneParent struct{ f *vhdxtest.File }

func (p oneParent) OpenParent(string, vhdx.ParentPath) (vhdx.File, string, error) {
	return p.f.Clone(), "base.vhdx", nil
}

// damages of a differencing image, checked without its parent.
var childDamages = []damage{
	{name: "none", spoil: func(*spoil) {}, finds: []string{"note parent"}, left: []string{"note parent"}},
	{
		name: "no sector bitmap", spoil: func(s *spoil) { s.entry(bitmapEntry, 0) },
		finds: []string{"note parent", "corrupt bitmap-missing", "leak leak-gap"},
		left:  []string{"note parent", "corrupt bitmap-missing", "leak leak-gap"},
	},
	{
		name: "a sector bitmap of a reserved state", spoil: func(s *spoil) { s.bitmap(s.entryAt(bitmapEntry) | 1) },
		finds: []string{"note parent", "corrupt bitmap-state", "leak leak-gap"},
		left:  []string{"note parent", "corrupt bitmap-state", "leak leak-gap"},
	},
	{
		name: "a sector bitmap with reserved bits", spoil: func(s *spoil) { s.bitmap(s.entryAt(bitmapEntry) | 16) },
		finds: []string{"note parent", "corrupt bat-reserved"}, left: []string{"note parent"},
	},
	{
		name: "a sector bitmap beyond the file", spoil: func(s *spoil) { s.bitmap(present(1 << 40)) },
		finds: []string{"note parent", "corrupt bat-place", "leak leak-gap"},
		left:  []string{"note parent", "corrupt bat-place", "leak leak-gap"},
	},
	{
		name: "a sector bitmap in a block's place", spoil: func(s *spoil) { s.bitmap(s.entryAt(0)) },
		finds: []string{"note parent", "warning bitmap-stale", "corrupt bat-overlap", "leak leak-gap"}, left: []string{"note parent", "leak leak-gap"},
	},
	{
		name: "a block in a sector bitmap's place", spoil: func(s *spoil) { s.entry(3, present(s.entryAt(bitmapEntry).Offset())) },
		finds: []string{"note parent", "corrupt bat-overlap"}, left: []string{"note parent"},
	},
	{
		name: "stale bits", spoil: func(s *spoil) { s.put(s.entryAt(bitmapEntry).Offset()+2*256, 0xff, 1) },
		finds: []string{"note parent", "warning bitmap-stale"}, left: []string{"note parent"},
	},
	{
		name: "bits beyond the disk", spoil: func(s *spoil) { s.put(s.entryAt(bitmapEntry).Offset()+5*256, 1) },
		finds: []string{"note parent", "warning bitmap-stale"}, left: []string{"note parent"},
	},
	{
		name: "an entry beyond the disk", spoil: func(s *spoil) { s.entry(7, s.entryAt(0)) },
		finds: []string{"note parent", "warning bat-beyond-disk", "corrupt bat-overlap"}, left: []string{"note parent"},
	},
	{
		name: "NOT_PRESENT with an offset", spoil: func(s *spoil) { s.entry(3, s.entryAt(0)&^7) },
		finds: []string{"note parent", "warning bat-offset"}, left: []string{"note parent"},
	},
	{
		name: "a locator of another type", spoil: func(s *spoil) { s.put(s.locator(), 1) },
		finds: []string{"unsupported parent-locator"}, left: []string{"unsupported parent-locator"},
	},
	{
		name: "a locator without linkage", spoil: func(s *spoil) {
			b := s.bytes(s.locator(), 1024)
			s.put(s.locator()+int64(bytes.Index(b, []byte("p\x00a\x00r\x00e\x00n\x00t\x00_"))), 'q')
		},
		finds: []string{"corrupt parent-locator"}, left: []string{"corrupt parent-locator"},
	},
}

// bitmapEntry is that of the first chunk, with blocks of 1 MiB and sectors of 512 bytes.
const bitmapEntry = 4096

func (s *spoil) bitmap(e ondisk.BATEntry) { s.entry(bitmapEntry, e) }

func (s *spoil) locator() int64 {
	base := s.region(ondisk.RegionMetadata)
	table, err := ondisk.DecodeMetadataTable(s.bytes(base, ondisk.MetadataTableSize), ondisk.MiB)
	if err != nil {
		s.t.Fatal(err)
	}
	i := slices.IndexFunc(table.Entries, func(e ondisk.MetadataEntry) bool { return e.Item == ondisk.ItemParentLocator })
	return base + int64(table.Entries[i].Offset)
}

func TestCheckAndRepairChild(t *testing.T) {
	for _, d := range childDamages {
		t.Run(d.name, func(t *testing.T) {
			f, err := fuzzChild()
			if err != nil {
				t.Fatal(err)
			}
			s := &spoil{t, f.Clone()}
			d.spoil(s)
			r := check(t, s.File)
			if diff := cmp.Diff(d.finds, found(r)); diff != "" {
				t.Fatalf("findings: %s\n%v", diff, r.Findings)
			}
			if why := disagreement(s.File, r, nil); why != "" {
				t.Fatal(why)
			}
			shown := showAll(s.File)
			repair(t, s.File, vhdx.RepairOptions{})
			left := check(t, s.File)
			if diff := cmp.Diff(d.left, found(left)); diff != "" {
				t.Fatalf("left: %s\n%v", diff, left.Findings)
			}
			if shown != nil && !bytes.Equal(shown, showAll(s.File)) {
				t.Fatal("the repair changed what is shown")
			}
		})
	}
}

// A chain is checked through the caller's opener: to its end, and no link may
// lead to another image than the one it was made for.
func TestCheckChain(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name+".vhdx") }
	if _, err := vhdx.Create(path("a"), vhdx.CreateOptions{Size: 64 * mib}); err != nil {
		t.Fatal(err)
	}
	for _, pair := range []string{"ba", "cb", "dc"} {
		if _, err := vhdx.CreateChild(path(pair[:1]), path(pair[1:]), vhdx.ChildOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	checked := func(root string) *vhdx.Report {
		t.Helper()
		f, err := os.Open(path("d"))
		if err != nil {
			t.Fatal(err)
		}
		of, err := vhdx.NewOSFile(f, vhdx.FileOptions{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		defer of.Close()
		r, err := vhdx.Check(t.Context(), of, vhdx.CheckOptions{Parents: vhdx.ParentsIn(root)})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := checked(dir); !r.Clean() || r.Depth != 4 || len(r.Findings) > 0 {
		t.Fatalf("depth %d: %v", r.Depth, r.Findings)
	}
	broken := func(root, says string) {
		t.Helper()
		r := checked(root)
		if f, ok := r.Worst(); !ok || f.Code != vhdx.CodeParent || f.Severity != vhdx.SeverityCorrupt || !strings.Contains(f.String(), says) {
			t.Fatalf("%v, want %q", r.Findings, says)
		}
	}
	broken(t.TempDir(), "say where they may be")
	if err := os.Rename(path("b"), path("z")); err != nil {
		t.Fatal(err)
	}
	broken(dir, "tried "+path("b"))
	if _, err := vhdx.Create(path("b"), vhdx.CreateOptions{Size: 64 * mib}); err != nil {
		t.Fatal(err)
	}
	broken(dir, "not the one its child was made of")
	if err := os.Remove(path("b")); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(path("d"), path("b")); err != nil {
		t.Fatal(err)
	}
	broken(dir, "cycle")
	if err := os.Remove(path("b")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path("b"), []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	broken(dir, "check the parent")
}
