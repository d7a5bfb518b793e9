package vhdx_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

const (
	itemA = "11111111-2222-3333-4444-555555555555"
	itemB = "aaaaaaaa-2222-3333-4444-555555555555"
)

func pattern(n int64, b byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = b + byte(i/4096)
	}
	return p
}

func mustItem(t *testing.T, im *vhdx.Image, id string, want []byte) {
	t.Helper()
	got, err := im.UserItem(id)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("item %s: %d bytes, %v, want %d", id, len(got), err, len(want))
	}
}

func TestUserItems(t *testing.T) {
	s := newSpoil(t, 1)
	im := s.open(vhdx.OpenOptions{})
	set := func(id string, content []byte) {
		t.Helper()
		if err := im.SetUserItem(id, content, true); err != nil {
			t.Fatal(err)
		}
		mustItem(t, im, id, content)
	}
	system := len(im.MetadataItems())
	set(itemA, []byte("first"))
	set(itemB, pattern(300*kib, 7)) // more pages than one log entry holds
	set(itemA, pattern(100*kib, 9))
	if err := im.Grow(im.Size() + mib); err != nil { // the size shares a page with the items
		t.Fatal(err)
	}
	set(itemA, []byte{})
	set(itemA, []byte("last"))
	mustItem(t, im, itemB, pattern(300*kib, 7))
	disk, err := im.SetDiskID("")
	if err != nil || im.Info().DiskID != disk {
		t.Fatalf("disk ID %s, %s, %v", disk, im.Info().DiskID, err)
	}
	closeImage(t, im)
	s.Reopen()
	if r := check(t, s.File); !r.Clean() || len(r.Findings) > 0 {
		t.Fatalf("findings: %v", r.Findings)
	}

	im = s.open(vhdx.OpenOptions{ReadOnly: true})
	mustItem(t, im, "{"+itemA+"}", []byte("last"))
	mustItem(t, im, itemB, pattern(300*kib, 7))
	if im.Info().DiskID != disk || im.Size() != 65*mib {
		t.Fatalf("disk ID %s, want %s", im.Info().DiskID, disk)
	}
	items := im.MetadataItems()
	a := slices.IndexFunc(items, func(i vhdx.MetadataItem) bool { return i.ID == itemA })
	if len(items) != system+2 || a < 0 || !items[a].User || !items[a].VirtualDisk || items[a].Required || items[a].Length != 4 {
		t.Fatalf("items %+v", items)
	}
	if err := im.SetUserItem(itemA, nil, false); !errors.Is(err, vhdx.ErrReadOnly) {
		t.Fatalf("set in a read-only image: %v", err)
	}
	closeImage(t, im)

	s.Reopen()
	im = s.open(vhdx.OpenOptions{})
	for _, id := range []string{itemB, itemA} {
		if err := im.DeleteUserItem(id); err != nil {
			t.Fatal(err)
		}
		if _, err := im.UserItem(id); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("deleted, and still there: %v", err)
		}
	}
	if err := im.DeleteUserItem(itemA); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("deleted twice: %v", err)
	}
	if len(im.MetadataItems()) != system {
		t.Fatalf("items %+v", im.MetadataItems())
	}
	closeImage(t, im)
}

func TestUserItemsRefused(t *testing.T) {
	s := newSpoil(t, 0)
	im := s.open(vhdx.OpenOptions{})
	refused := func(err error) {
		t.Helper()
		if !errors.Is(err, vhdx.ErrInvalid) {
			t.Fatalf("got %v", err)
		}
	}
	refused(im.SetUserItem("name", nil, false))
	refused(im.SetUserItem("00000000-0000-0000-0000-000000000000", nil, false))
	refused(im.SetUserItem(itemA, make([]byte, mib+1), false))
	refused(im.SetUserItem(itemA, make([]byte, mib), false)) // the region has 1 MiB, table included
	_, err := im.SetDiskID("disk")
	refused(err)
	if _, err := im.UserItem(ondisk.ItemVirtualDiskID.String()); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("a system item read as a user's: %v", err)
	}
	for i := range ondisk.MaxUserMetadataEntries {
		if err := im.SetUserItem(fmt.Sprintf("11111111-2222-3333-4444-%012d", i), nil, false); err != nil {
			t.Fatalf("item %d: %v", i, err)
		}
	}
	refused(im.SetUserItem(itemA, nil, false))
	if got := len(im.MetadataItems()); got != ondisk.MaxUserMetadataEntries+5 {
		t.Fatalf("%d items", got)
	}
	closeImage(t, im)
}

// Items and regions that nobody here knows stay where they are.
func TestUnknownItemsAreKept(t *testing.T) {
	s := newSpoil(t, 0)
	base := s.region(ondisk.RegionMetadata)
	table, err := ondisk.DecodeMetadataTable(s.bytes(base, ondisk.MetadataTableSize), ondisk.MiB)
	if err != nil {
		t.Fatal(err)
	}
	strange := ondisk.MetadataEntry{Item: unknown, Offset: 0x20000, Length: 5, VirtualDisk: true}
	table.Entries = append([]ondisk.MetadataEntry{strange}, table.Entries...)
	b := make([]byte, ondisk.MetadataTableSize)
	if err := table.Encode(b); err != nil {
		t.Fatal(err)
	}
	s.put(base, b...)
	s.put(base+0x20000, []byte("stays")...)
	im := s.open(vhdx.OpenOptions{})
	if err := im.SetUserItem(itemA, pattern(200*kib, 1), false); err != nil {
		t.Fatal(err)
	}
	if err := im.DeleteUserItem(itemA); err != nil {
		t.Fatal(err)
	}
	closeImage(t, im)
	s.Reopen()
	if got := s.bytes(base+0x20000, 5); string(got) != "stays" {
		t.Fatalf("unknown item holds %q", got)
	}
	if after, err := ondisk.DecodeMetadataTable(s.bytes(base, ondisk.MetadataTableSize), ondisk.MiB); err != nil || !slices.Equal(after.Entries, table.Entries) {
		t.Fatalf("table %+v, %v", after, err)
	}
}

// Cut at every step, an item is the old or the new one, whole; and once it has
// been set, the new one (I-ITEM-1).
func TestUserItemsCut(t *testing.T) {
	s := newSpoil(t, 0)
	im := s.open(vhdx.OpenOptions{})
	old := pattern(20*kib, 1)
	if err := im.SetUserItem(itemA, old, false); err != nil {
		t.Fatal(err)
	}
	may := [][]byte{old}
	images := 0
	s.OnStep(func(snap *vhdxtest.Snapshot) {
		for i := range 6 {
			if i > 0 && snap.Undecided() == 0 || t.Failed() {
				return
			}
			p := snap.Plan(1, i)
			images++
			if err := judgeItem(snap.Image(p), may); err != nil {
				t.Errorf("step %d, %s: %v", snap.Step(), p.Name, err)
			}
		}
	})
	for n, content := range [][]byte{pattern(600*kib, 50), []byte("small"), nil, pattern(5000, 9)} {
		may = append(may, content)
		change := func() error { return im.SetUserItem(itemA, content, false) }
		if content == nil {
			change = func() error { return im.DeleteUserItem(itemA) }
		}
		if err := change(); err != nil {
			t.Fatalf("change %d: %v", n, err)
		}
		may = may[1:]
	}
	closeImage(t, im)
	t.Logf("%d images", images)
}

func judgeItem(image *vhdxtest.File, may [][]byte) error {
	im, err := vhdx.Open(image, vhdx.OpenOptions{ReadOnly: true})
	if err != nil {
		return err
	}
	defer im.Close()
	got, err := im.UserItem(itemA)
	if errors.Is(err, fs.ErrNotExist) {
		got, err = nil, nil
	}
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(may, func(m []byte) bool { return bytes.Equal(m, got) && (m == nil) == (got == nil) }) {
		return fmt.Errorf("the item has %d bytes, one of %d contents was due", len(got), len(may))
	}
	return nil
}
