package sanity

import (
	"fmt"
	"path/filepath"
	"regexp"
	"sync/atomic"
	"testing"

	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
	"github.com/onsi/gomega"

	"github.com/csi-vhdx/csi-driver-vhdx/test/plugin"
)

// pending are cases that csi-sanity itself has switched off.
var pending = regexp.MustCompile(`pagination should detect volumes added between pages`)

var ran atomic.Bool

// TestSanity runs csi-sanity against two plugin processes, once with
// filesystem volumes and once with block volumes.
func TestSanity(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: csi-sanity takes a minute; it runs in the full step")
	}
	if ran.Swap(true) {
		t.Skip("ginkgo runs a suite only once in a process")
	}
	for _, access := range []string{"mount", "block"} {
		dir := home(t)
		start(t, dir, "--max-volumes=6")
		c := sanity.NewTestConfig() // 10 GiB volumes, every idempotent call ten times
		c.Address = plugin.Endpoint(dir)
		c.TargetPath = filepath.Join(dir, "kubelet", "target")
		c.StagingPath = filepath.Join(dir, "kubelet", "staging")
		c.TestVolumeAccessType = access
		c.TestNodeVolumeAttachLimit = true
		c.TestVolumeMutableParameters = map[string]string{"iops": "100000", "bandwidth": "1Gi", "burst": "5", "onFull": "pause"}
		ginkgo.Describe(access, func() { sanity.GinkgoTest(&c) })
	}
	var report types.Report
	ginkgo.ReportAfterSuite("what ran", func(r ginkgo.Report) { report = r })
	gomega.RegisterFailHandler(ginkgo.Fail)
	suite, reporter := ginkgo.GinkgoConfiguration()
	reporter.NoColor = true
	ginkgo.RunSpecs(t, "csi-sanity v5.6.0", suite, reporter)
	checkReport(t, report)
}

// checkReport counts what ran. Nothing may skip.
func checkReport(t *testing.T, report types.Report) {
	t.Helper()
	counts := make(map[types.SpecState]int)
	for _, s := range report.SpecReports {
		if s.LeafNodeType != types.NodeTypeIt {
			continue
		}
		counts[s.State]++
		switch {
		case s.State == types.SpecStatePending && pending.MatchString(s.FullText()):
		case s.State != types.SpecStatePassed:
			t.Errorf("%s: %s: %s", s.State, s.FullText(), s.FailureMessage())
		}
	}
	summary := fmt.Sprintf("%d passed, %d failed, %d skipped, %d switched off by csi-sanity",
		counts[types.SpecStatePassed], counts[types.SpecStateFailed]+counts[types.SpecStatePanicked],
		counts[types.SpecStateSkipped], counts[types.SpecStatePending])
	t.Attr("csi-sanity", summary)
	if counts[types.SpecStatePassed] < 100 {
		t.Errorf("only %d cases passed in both modes together", counts[types.SpecStatePassed])
	}
}
