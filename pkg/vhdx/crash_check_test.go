package vhdx_test

import (
	"context"
	"fmt"
	"slices"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

// checkCut: Check finds no damage in what a power cut left (I-CHK-1).
func checkCut(image *vhdxtest.File) error {
	r, err := vhdx.Check(context.Background(), image, vhdx.CheckOptions{})
	if err != nil {
		return err
	}
	if r.Corrupt() || r.Stopped != "" || r.Counts[vhdx.SeverityUnsupported] > 0 {
		return fmt.Errorf("check: stopped %q: %v", r.Stopped, r.Findings)
	}
	return nil
}

// checkClean: Check finds nothing worth a repair in what was closed, but for
// space that a session without writes leaves unused, bits of blocks that
// are not partially present any more: they mean nothing (I-CHAIN-6); and the
// second GUID that a merge leaves in a child which is not needed any more.
func checkClean(image *vhdxtest.File, allowed ...vhdx.Code) error {
	r, err := vhdx.Check(context.Background(), image, vhdx.CheckOptions{})
	if err != nil {
		return err
	}
	for _, f := range r.Findings {
		if slices.Contains(allowed, f.Code) {
			continue
		}
		if f.Severity != vhdx.SeverityNote && f.Severity != vhdx.SeverityLeak && f.Code != vhdx.CodeBitmapStale && f.Code != vhdx.CodeMergeUnfinished {
			return fmt.Errorf("closed, and check finds: %v", f)
		}
	}
	if r.Stopped != "" {
		return fmt.Errorf("closed, and check stops: %s", r.Stopped)
	}
	return nil
}
