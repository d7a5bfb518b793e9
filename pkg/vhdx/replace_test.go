package vhdx_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/internal/ondisk"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

// anotherSize returns a copy of an image with its DataWriteGuid, but another
// size, and with data at some place.
func anotherSize(t *testing.T, f *vhdxtest.File, size, data int64) *vhdxtest.File {
	t.Helper()
	s := &spoil{t, f.Clone()}
	hs, err := vhdxtest.Headers(s.File)
	must(t, err)
	im := s.open(vhdx.OpenOptions{GrowthStep: mib})
	must(t, im.Resize(size, vhdx.ResizeOptions{CutData: true}))
	if data > 0 {
		_, err := im.WriteAt(bytes.Repeat([]byte{9}, 4096), data)
		must(t, err)
	}
	must(t, im.Close())
	s.Reopen()
	s.headers(func(h *ondisk.Header) { h.DataWriteGUID = ondisk.GUID(hs[0].DataWriteGUID) })
	return s.File.Clone()
}

// Another parent may end elsewhere as long as the image shows the same on it.
func TestReplaceParentOfAnotherSize(t *testing.T) {
	base := vhdxtest.NewFile("base")
	_, err := vhdx.CreateOn(base, vhdx.CreateOptions{Size: 8 * mib, BlockSize: mib})
	must(t, err)
	im, err := vhdx.Open(base, vhdx.OpenOptions{GrowthStep: mib})
	must(t, err)
	want := fillRandom(3, 4*mib)
	_, err = im.WriteAt(want, 0)
	must(t, errors.Join(err, im.Close()))
	want = append(want, make([]byte, 8*mib)...)

	for name, c := range map[string]struct {
		child, size, data int64 // of the child's disk, of the new parent's, and where that has data
		hides             int64 // block of the child's own
		refused           bool
	}{
		"longer":                          {child: 6 * mib, size: 12 * mib},
		"longer, data beyond the child":   {child: 6 * mib, size: 12 * mib, data: 9 * mib},
		"longer, data in the child":       {child: 10 * mib, size: 12 * mib, data: 9 * mib, refused: true},
		"longer, data that it hides":      {child: 10 * mib, size: 12 * mib, data: 9 * mib, hides: 9 * mib},
		"longer than a longer child":      {child: 12 * mib, size: 9*mib + 512},
		"shorter by zeros":                {child: 8 * mib, size: 4*mib + 512},
		"shorter by data":                 {child: 8 * mib, size: 4*mib - 512, refused: true},
		"shorter by data that it hides":   {child: 8 * mib, size: 3 * mib, hides: 3 * mib},
		"shorter, but not than the child": {child: 3 * mib, size: 3*mib + 512},
	} {
		t.Run(name, func(t *testing.T) {
			files := memParents{"base": base.Clone(), "new": anotherSize(t, base, c.size, c.data)}
			parent, err := vhdx.Open(base.Clone(), vhdx.OpenOptions{ReadOnly: true})
			must(t, err)
			child := vhdxtest.NewFile("child")
			_, err = parent.CreateChildOn(child, vhdx.ChildOptions{Size: c.child, BlockSize: mib, RelativePath: "base"})
			must(t, errors.Join(err, parent.Close()))
			o := vhdx.OpenOptions{Parents: files, GrowthStep: mib}
			im, err := vhdx.Open(child, o)
			must(t, err)
			want := bytes.Clone(want[:c.child])
			if c.hides > 0 {
				copy(want[c.hides:], fillRandom(4, mib))
				_, err := im.WriteAt(want[c.hides:c.hides+mib], c.hides)
				must(t, err)
			}
			err = im.ReplaceParent(vhdx.ParentChange{RelativePath: "new"})
			if c.refused != errors.Is(err, vhdx.ErrParentMismatch) || !c.refused && err != nil {
				t.Fatalf("replace: %v", err)
			}
			verify(t, im, want)
			want = append(want, make([]byte, 14*mib-c.child)...)
			must(t, im.Grow(14*mib))
			verify(t, im, want)
			must(t, im.Close())
			child.Reopen()
			o.ReadOnly = true
			im, err = vhdx.Open(child, o)
			must(t, err)
			verify(t, im, want)
			must(t, im.Close())
		})
	}
}
