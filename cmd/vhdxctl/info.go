package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// infoResult is what info prints as JSON.
type infoResult struct {
	Path        string `json:"path"`
	Creator     string `json:"creator"`
	VirtualSize int64  `json:"virtualSize"`
	FileSize    int64  `json:"fileSize"`
	// SpaceUsed is what the file takes on its filesystem; less than FileSize:
	// it is sparse.
	SpaceUsed          int64      `json:"spaceUsed"`
	Fixed              bool       `json:"fixed"`
	BlockSize          int64      `json:"blockSize"`
	LogicalSectorSize  int        `json:"logicalSectorSize"`
	PhysicalSectorSize int        `json:"physicalSectorSize"`
	PayloadBlocks      int64      `json:"payloadBlocks"`
	AllocatedBlocks    int64      `json:"allocatedBlocks"`
	LogSize            int64      `json:"logSize"`
	Log                *logResult `json:"log"` // null: clean
	DiskID             string     `json:"diskID"`
	FileWriteGUID      string     `json:"fileWriteGUID"`
	DataWriteGUID      string     `json:"dataWriteGUID"`
	Type               string     `json:"type"` // dynamic, fixed or differencing
	// Chain is what a differencing image stands on, its parent first.
	Chain []layerResult `json:"chain,omitempty"`
	// ChainBroken says why there is no chain where there should be one.
	ChainBroken string        `json:"chainBroken,omitempty"`
	Parent      *parentResult `json:"parent,omitempty"`
}

// logResult describes a log that must be, or was, replayed.
type logResult struct {
	Entries int   `json:"entries"`
	Pages   int   `json:"pages"`
	Zeroed  int64 `json:"zeroedBytes"`
}

func (a *app) infoCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "info PATH",
		Short: "Describe an image",
		Long: `Describe an image. It is opened read-only and not changed: a log that must be
replayed is applied in memory. Of a differencing image, what it stands on is shown
too; if that is not to be had, it is said, and the image described alone.`,
		Example: `  vhdxctl info disk.vhdx
  vhdxctl info --json disk.vhdx | jq .allocatedBlocks`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			r, err := a.info(args[0])
			if err != nil {
				return err
			}
			a.print(r, r.print)
			return nil
		},
	}
}

// info opens an image read-only, which validates all of it but the data. An
// image whose parent is not to be had is described alone.
func (a *app) info(path string) (infoResult, error) {
	im, broken, err := a.openChain(path)
	if err != nil {
		return infoResult{}, err
	}
	r := newInfoResult(path, im.Info())
	r.SpaceUsed = spaceUsed(path, r.FileSize)
	for i, l := range im.Layers() {
		if layer := newLayerResult(l); i > 0 {
			r.Chain = append(r.Chain, layer)
		} else {
			r.Parent = layer.Parent
		}
	}
	if broken != nil {
		r.ChainBroken = broken.Error()
	}
	return r, im.Close()
}

// spaceUsed asks the filesystem; size where it does not say.
func spaceUsed(path string, size int64) int64 {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return size
	}
	return st.Blocks * 512
}

func spaceText(used, size int64) string {
	if used >= size {
		return formatSize(used)
	}
	return formatSize(used) + " (sparse: Windows refuses such a file on its own filesystems; vhdxctl convert --no-sparse makes one that is not)"
}

func newInfoResult(path string, i vhdx.Info) infoResult {
	return infoResult{
		Path: path, Creator: i.Creator,
		VirtualSize: i.VirtualSize, FileSize: i.FileSize, Fixed: i.Fixed,
		BlockSize: i.BlockSize, LogicalSectorSize: i.LogicalSectorSize, PhysicalSectorSize: i.PhysicalSectorSize,
		PayloadBlocks: i.PayloadBlocks, AllocatedBlocks: i.AllocatedBlocks,
		LogSize: i.LogSize, Log: newLogResult(i.Replay),
		DiskID: i.DiskID, FileWriteGUID: i.FileWriteGUID, DataWriteGUID: i.DataWriteGUID, Type: kindOfImage(i),
	}
}

func (r *logResult) String() string {
	return count(r.Entries, "entry", "entries") + ", " + count(r.Pages, "page", "pages")
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func newLogResult(r vhdx.ReplayInfo) *logResult {
	if r.Entries == 0 {
		return nil
	}
	return &logResult{r.Entries, r.Pages, r.Zeroed}
}

func (r infoResult) print(w io.Writer) {
	log := "clean"
	if r.Log != nil {
		log = fmt.Sprintf("must be replayed (%v): vhdxctl check -r all '%s'", r.Log, r.Path)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	rows := [][2]string{
		{"image", r.Path},
		{"format", "VHDX, " + r.Type},
		{"virtual size", exactSize(r.VirtualSize)},
		{"file size", exactSize(r.FileSize)},
		{"space used", spaceText(r.SpaceUsed, r.FileSize)},
		{"allocated", fmt.Sprintf("%d of %d blocks of %s", r.AllocatedBlocks, r.PayloadBlocks, formatSize(r.BlockSize))},
		{"sector size", fmt.Sprintf("%d logical, %d physical", r.LogicalSectorSize, r.PhysicalSectorSize)},
		{"log", formatSize(r.LogSize) + ", " + log},
		{"creator", r.Creator},
		{"disk id", r.DiskID},
		{"file write GUID", r.FileWriteGUID},
		{"data write GUID", r.DataWriteGUID},
	}
	if p := r.Parent; p != nil {
		rows = append(rows, [2]string{"parent linkage", p.Linkage})
		for _, key := range slices.Sorted(maps.Keys(p.Paths)) {
			rows = append(rows, [2]string{"parent path", p.Paths[key] + " (" + key + ")"})
		}
	}
	for i, l := range r.Chain {
		rows = append(rows, [2]string{"stands on", fmt.Sprintf("%s%s, %s, %d blocks", strings.Repeat("  ", i), l.Path, l.Type, l.AllocatedBlocks)})
	}
	if r.ChainBroken != "" {
		rows = append(rows, [2]string{"stands on", "BROKEN: " + r.ChainBroken})
	}
	for _, row := range rows {
		fmt.Fprintf(t, "%s:\t%s\n", row[0], row[1])
	}
	_ = t.Flush() // to standard output; there is nowhere else to complain
}
