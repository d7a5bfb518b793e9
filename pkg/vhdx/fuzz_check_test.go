package vhdx_test

import (
	"errors"
	"runtime"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

// FuzzCheck checks hostile images, made as FuzzOpen makes them. Nothing may
// panic, hang, change the file or allocate without bound, and Check and Open
// agree (I-CHK-1): what opens has no damage, and what is damaged does not open.
func FuzzCheck(f *testing.F) {
	seedImages(f)
	f.Fuzz(func(t *testing.T, in []byte) {
		file := fuzzImage(in)
		if file == nil {
			return
		}
		before := file.Hash()
		var m0, m1 runtime.MemStats
		runtime.ReadMemStats(&m0)
		r, err := vhdx.Check(t.Context(), file, vhdx.CheckOptions{PerCode: 5})
		runtime.ReadMemStats(&m1)
		if file.Hash() != before {
			t.Fatal("a check changed the file")
		}
		size, _ := file.Size()
		if used := m1.TotalAlloc - m0.TotalAlloc; used > 256*uint64(mib)+64*uint64(size) {
			t.Fatalf("%d bytes allocated for a file of %d", used, size)
		}
		if why := disagreement(file, r, err); why != "" {
			t.Fatalf("%s: %v, %v", why, err, r.Findings)
		}
	})
}

// seedImages adds the seeds that FuzzOpen has.
func seedImages(f *testing.F) {
	for base := range len(fuzzBases()) + 1 {
		f.Add([]byte{byte(base), 0, 0})
		for anchor := range len(fuzzAnchors) {
			f.Add([]byte{byte(base), mendAll, 0, byte(anchor), 0, 0, 1, 0xff})
			f.Add([]byte{byte(base), mendAll, byte(anchor), byte(anchor), 16, 0, 8, 0xff, 0, 1, 2, 3, 4, 5, 0x7f})
		}
	}
	f.Add(append([]byte{255, 0, 0}, "vhdxfile"...))
}

// disagreement tells where a check and a read-only open of the same bytes see
// different things; "" if they do not.
func disagreement(file *vhdxtest.File, r *vhdx.Report, checkErr error) string {
	clone := file.Clone()
	im, err := vhdx.Open(clone, vhdx.OpenOptions{ReadOnly: true, NoParents: true})
	if err == nil {
		_ = im.Close()
	}
	switch {
	case checkErr != nil && err == nil:
		return "it opens, and could not be checked"
	case checkErr != nil:
		return ""
	case err == nil && (r.Stopped != "" || r.Counts[vhdx.SeverityUnsupported] > 0):
		return "it opens, and the check says that it cannot: " + r.Stopped
	case err == nil && r.Corrupt():
		return "it opens, and the check calls it corrupt"
	case errors.Is(err, vhdx.ErrCorrupt) && !r.Corrupt() && r.Counts[vhdx.SeverityUnsupported] == 0 && !has(r, vhdx.CodeLogPayload):
		return "it does not open (" + err.Error() + "), and the check finds no damage"
	case err != nil && r.Clean():
		return "it does not open (" + err.Error() + "), and the check calls it clean"
	}
	return ""
}

// has reports whether a code was found.
func has(r *vhdx.Report, code vhdx.Code) bool {
	for _, f := range r.Findings {
		if f.Code == code {
			return true
		}
	}
	return false
}
