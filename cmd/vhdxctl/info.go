package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// infoResult is what info prints as JSON.
type infoResult struct {
	Path               string     `json:"path"`
	Creator            string     `json:"creator"`
	VirtualSize        int64      `json:"virtualSize"`
	FileSize           int64      `json:"fileSize"`
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
replayed is applied in memory.`,
		Example: `  vhdxctl info disk.vhdx
  vhdxctl info --json disk.vhdx | jq .allocatedBlocks`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			info, err := readInfo(args[0])
			if err != nil {
				return err
			}
			r := newInfoResult(args[0], info)
			a.print(r, r.print)
			return nil
		},
	}
}

// readInfo opens an image read-only, which validates all of it but the data.
func readInfo(path string) (vhdx.Info, error) {
	im, err := vhdx.OpenPath(path, vhdx.OpenOptions{ReadOnly: true})
	if err != nil {
		return vhdx.Info{}, err
	}
	info := im.Info()
	return info, im.Close()
}

func newInfoResult(path string, i vhdx.Info) infoResult {
	return infoResult{
		Path: path, Creator: i.Creator,
		VirtualSize: i.VirtualSize, FileSize: i.FileSize, Fixed: i.Fixed,
		BlockSize: i.BlockSize, LogicalSectorSize: i.LogicalSectorSize, PhysicalSectorSize: i.PhysicalSectorSize,
		PayloadBlocks: i.PayloadBlocks, AllocatedBlocks: i.AllocatedBlocks,
		LogSize: i.LogSize, Log: newLogResult(i.Replay),
		DiskID: i.DiskID, FileWriteGUID: i.FileWriteGUID, DataWriteGUID: i.DataWriteGUID,
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
	for _, row := range [][2]string{
		{"image", r.Path},
		{"format", "VHDX, " + kind(r.Fixed)},
		{"virtual size", exactSize(r.VirtualSize)},
		{"file size", exactSize(r.FileSize)},
		{"allocated", fmt.Sprintf("%d of %d blocks of %s", r.AllocatedBlocks, r.PayloadBlocks, formatSize(r.BlockSize))},
		{"sector size", fmt.Sprintf("%d logical, %d physical", r.LogicalSectorSize, r.PhysicalSectorSize)},
		{"log", formatSize(r.LogSize) + ", " + log},
		{"creator", r.Creator},
		{"disk id", r.DiskID},
		{"file write GUID", r.FileWriteGUID},
		{"data write GUID", r.DataWriteGUID},
	} {
		fmt.Fprintf(t, "%s:\t%s\n", row[0], row[1])
	}
	_ = t.Flush() // to standard output; there is nowhere else to complain
}
