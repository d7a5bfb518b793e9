package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// maxItem is the most that the format lets an item hold.
const maxItem = 1 << 20

func (a *app) metadataCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "metadata",
		Short: "Get, set and remove metadata items",
		Long: `Get, set and remove metadata items: up to 1024 pieces of a user's own data of at
most 1 MiB each, under GUIDs of the user's choice, that travel with the image. The
name disk-id stands for the disk's identity, which guests see as SCSI page 83 data.
"dump metadata" lists all there is.`,
		Example: `  vhdxctl metadata set disk.vhdx 5e9e7c1c-52a3-4b0c-8d5a-0f6f2f1a7d11 "golden image 7"
  vhdxctl metadata get disk.vhdx 5e9e7c1c-52a3-4b0c-8d5a-0f6f2f1a7d11
  vhdxctl metadata set disk.vhdx disk-id`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.metadataGet(), a.metadataSet(), a.metadataRemove())
	return cmd
}

const diskID = "disk-id"

func (a *app) metadataGet() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "get PATH ID",
		Short: "Print an item",
		Long: `Print the content of a user's item, byte for byte, or write it to a file; or print
the disk's identity.`,
		Example: `  vhdxctl metadata get disk.vhdx 5e9e7c1c-52a3-4b0c-8d5a-0f6f2f1a7d11
  vhdxctl metadata get --output item.bin disk.vhdx 5e9e7c1c-52a3-4b0c-8d5a-0f6f2f1a7d11
  vhdxctl metadata get disk.vhdx disk-id`,
		Args: cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			content, err := a.getItem(args[0], args[1])
			if err != nil {
				return err
			}
			if output != "" {
				return os.WriteFile(output, content, 0o600)
			}
			a.print(struct {
				Path    string `json:"path"`
				ID      string `json:"id"`
				Content []byte `json:"content"` // base64
			}{args[0], args[1], content}, func(w io.Writer) { _, err = w.Write(content) })
			return err
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "file to write the content to")
	return cmd
}

func (a *app) getItem(path, id string) ([]byte, error) {
	im, err := a.openMetadata(path, true)
	if err != nil {
		return nil, err
	}
	var content []byte
	if id == diskID {
		content = []byte(im.Info().DiskID + "\n")
	} else {
		content, err = im.UserItem(id)
	}
	return content, errors.Join(noItem(err), im.Close())
}

// noItem keeps a missing item apart from a missing file.
func noItem(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%v; \"vhdxctl dump metadata\" lists what there is", err) //nolint:errorlint // on purpose
	}
	return err
}

// openMetadata opens an image; its parents are needed for changes alone.
func (a *app) openMetadata(path string, readOnly bool) (*vhdx.Image, error) {
	return a.openImage(path, vhdx.OpenOptions{ReadOnly: readOnly, NoParents: readOnly})
}

func (a *app) metadataSet() *cobra.Command {
	var file string
	var disk bool
	cmd := &cobra.Command{
		Use:   "set PATH ID [VALUE]",
		Short: "Create or replace an item",
		Long: `Create or replace a user's item, with VALUE, or what a file or standard input
holds. A power cut leaves the old item or the new one.

For disk-id, VALUE is a GUID; without one, a random identity is set.`,
		Example: `  vhdxctl metadata set disk.vhdx 5e9e7c1c-52a3-4b0c-8d5a-0f6f2f1a7d11 "golden image 7"
  vhdxctl metadata set --file notes.txt disk.vhdx 5e9e7c1c-52a3-4b0c-8d5a-0f6f2f1a7d11
  vhdxctl metadata set disk.vhdx disk-id`,
		Args: cobra.RangeArgs(2, 3),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, id, value := args[0], args[1], args[2:]
			if id == diskID {
				return a.setDiskID(path, value)
			}
			if (file != "") == (len(value) == 1) {
				return errors.New("give either a VALUE or --file")
			}
			var content []byte
			if len(value) == 1 {
				content = []byte(value[0])
			} else {
				var err error
				if content, err = readItem(cmd.InOrStdin(), file); err != nil {
					return err
				}
			}
			return a.changeMetadata(path, id, fmt.Sprintf("set, %s", count(len(content), "byte", "bytes")), func(im *vhdx.Image) error {
				return im.SetUserItem(id, content, disk)
			})
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "file with the content; -: standard input")
	cmd.Flags().BoolVar(&disk, "virtual-disk", false, "the item belongs to the disk: children get a copy")
	return cmd
}

// readItem reads what an item will hold.
func readItem(stdin io.Reader, file string) ([]byte, error) {
	r := stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		r = f
	}
	content, err := io.ReadAll(io.LimitReader(r, maxItem+1))
	if err == nil && len(content) > maxItem {
		err = fmt.Errorf("%s: an item holds at most 1 MiB", file)
	}
	return content, err
}

func (a *app) setDiskID(path string, value []string) error {
	id := ""
	if len(value) == 1 {
		id = value[0]
	}
	im, err := a.openMetadata(path, false)
	if err != nil {
		return err
	}
	id, err = im.SetDiskID(id)
	if err := errors.Join(err, im.Close()); err != nil {
		return err
	}
	a.print(metadataResult{path, diskID, id}, func(w io.Writer) { fmt.Fprintf(w, "%s: disk identity is %s\n", path, id) })
	return nil
}

// metadataResult is what set and rm print as JSON.
type metadataResult struct {
	Path string `json:"path"`
	ID   string `json:"id"`
	Did  string `json:"did"` // or, of disk-id, the identity
}

func (a *app) metadataRemove() *cobra.Command {
	return &cobra.Command{
		Use:     "rm PATH ID",
		Short:   "Remove an item",
		Long:    `Remove a user's item. A power cut leaves it there or gone.`,
		Example: `  vhdxctl metadata rm disk.vhdx 5e9e7c1c-52a3-4b0c-8d5a-0f6f2f1a7d11`,
		Args:    cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.changeMetadata(args[0], args[1], "removed", func(im *vhdx.Image) error { return im.DeleteUserItem(args[1]) })
		},
	}
}

func (a *app) changeMetadata(path, id, did string, change func(*vhdx.Image) error) error {
	im, err := a.openMetadata(path, false)
	if err != nil {
		return err
	}
	if err := errors.Join(noItem(change(im)), im.Close()); err != nil {
		return err
	}
	a.print(metadataResult{path, id, did}, func(w io.Writer) { fmt.Fprintf(w, "%s: item %s %s\n", path, id, did) })
	return nil
}
