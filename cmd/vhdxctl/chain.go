package main

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// layerResult is one image of a chain as JSON.
type layerResult struct {
	Path            string        `json:"path"`
	Type            string        `json:"type"`
	VirtualSize     int64         `json:"virtualSize"`
	FileSize        int64         `json:"fileSize"`
	BlockSize       int64         `json:"blockSize"`
	AllocatedBlocks int64         `json:"allocatedBlocks"`
	DataWriteGUID   string        `json:"dataWriteGUID"`
	Parent          *parentResult `json:"parent"` // null: it stands alone
}

// parentResult is what an image says of its parent.
type parentResult struct {
	Linkage  string            `json:"linkage"`
	Linkage2 string            `json:"linkage2,omitempty"`
	Paths    map[string]string `json:"paths"`
}

// chainResult is what chain prints as JSON.
type chainResult struct {
	// Layers from the image down.
	Layers []layerResult `json:"layers"`
	// Broken says why the chain ends before its end; "": it does not.
	Broken string `json:"broken,omitempty"`
}

func (a *app) chainCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "chain PATH",
		Short: "Show the images that an image stands on",
		Long: `Show an image and all the images that it stands on, its parent, the parent's
parent and so on, and whether each is the one that the image above was made of.

Parents are looked for in the image's own directory and below, unless --parents
names another. If one is missing, or not the right one, what there is is shown,
and the command fails.`,
		Example: `  vhdxctl chain snapshot.vhdx
  vhdxctl chain --parents /srv/images child.vhdx
  vhdxctl chain --json child.vhdx | jq -r '.layers[].path'`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			layers, broken, err := a.layers(args[0])
			if err != nil {
				return err
			}
			r := chainResult{Layers: layers}
			if broken != nil {
				r.Broken = broken.Error()
			}
			a.print(r, r.print)
			return broken
		},
	}
}

// layers opens an image and describes its chain. broken says why not all of
// it: then the image itself is all there is.
func (a *app) layers(path string) (layers []layerResult, broken, err error) {
	im, broken, err := a.openChain(path)
	if err != nil {
		return nil, broken, err
	}
	for _, l := range im.Layers() {
		layers = append(layers, newLayerResult(l))
	}
	return layers, broken, im.Close()
}

// openChain opens an image read-only, alone where its chain is broken.
func (a *app) openChain(path string) (im *vhdx.Image, broken, err error) {
	im, err = a.openReadOnly(path)
	if _, ok := errors.AsType[*vhdx.ParentError](err); ok {
		broken = err
		im, err = vhdx.OpenPath(path, vhdx.OpenOptions{ReadOnly: true, NoParents: true})
	}
	return im, broken, err
}

func newLayerResult(l vhdx.Layer) layerResult {
	r := layerResult{
		Path: l.File, Type: kindOfImage(l.Info), VirtualSize: l.VirtualSize, FileSize: l.FileSize,
		BlockSize: l.BlockSize, AllocatedBlocks: l.AllocatedBlocks, DataWriteGUID: l.DataWriteGUID,
	}
	if p := l.Parent; p != nil {
		r.Parent = &parentResult{Linkage: p.Linkage, Linkage2: p.Linkage2, Paths: map[string]string{}}
		for _, path := range p.Paths {
			r.Parent.Paths[path.Key] = path.Value
		}
	}
	return r
}

func kindOfImage(i vhdx.Info) string {
	if i.HasParent {
		return "differencing"
	}
	return kind(i.Fixed)
}

// relativeTo shortens a path that is beside or below another's directory.
func relativeTo(dir, path string) string {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return path
	}
	rel, err := filepath.Rel(dir, path)
	if err != nil || strings.HasPrefix(rel, "..") || !filepath.IsAbs(path) {
		return path
	}
	return rel
}

func (r chainResult) print(w io.Writer) {
	indent := ""
	for i, l := range r.Layers {
		name := l.Path
		if i > 0 {
			name = relativeTo(filepath.Dir(r.Layers[0].Path), name)
			fmt.Fprintf(w, "%s└─ ", indent)
			indent += "   "
		}
		fmt.Fprintf(w, "%s  (%s, %s, %d blocks of %s)\n", name, l.Type, formatSize(l.VirtualSize), l.AllocatedBlocks, formatSize(l.BlockSize))
	}
	if r.Broken != "" {
		fmt.Fprintf(w, "%s└─ ?\n", indent)
	}
}

func (a *app) childCommand() *cobra.Command {
	var o vhdx.ChildOptions
	var block, log sizeFlag
	cmd := &cobra.Command{
		Use:   "child PARENT PATH [SIZE]",
		Short: "Create a differencing image",
		Long: `Create a differencing image of PARENT at PATH, which must not exist: it takes no
space at first, shows what the parent shows, and keeps what is written to it.

The parent must not be written any more as long as it has children: that would
break their link. The child names it by its path relative to its own directory,
so the two can be moved together. With SIZE the child's disk is larger, or
smaller, than the parent's.`,
		Example: `  vhdxctl child base.vhdx snapshot.vhdx
  vhdxctl child golden/base.vhdx vm1.vhdx 100G
  vhdxctl child --block-size 1M base.vhdx clone.vhdx`,
		Args: cobra.RangeArgs(2, 3),
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 3 {
				var err error
				if o.Size, err = parseSize(args[2]); err != nil {
					return err
				}
			}
			o.BlockSize, o.LogSize = int64(block), int64(log)
			return a.child(args[0], args[1], o)
		},
	}
	f := cmd.Flags()
	f.Var(&block, "block-size", "unit of allocation, 1M to 256M, a power of two (default 2M up to 1T, more above)")
	f.Var(&log, "log-size", "size of the log, whole MiB (default 1M)")
	f.StringVar(&o.Creator, "creator", "", "name of the creating software in the file, for diagnosis alone")
	f.BoolVar(&o.Absolute, "absolute", false, "also write the parent's absolute path, as one on drive C:")
	return cmd
}

func (a *app) child(parent, path string, o vhdx.ChildOptions) error {
	made, err := vhdx.CreateChild(path, parent, o)
	if err != nil {
		return err
	}
	a.printCreated(path, parent, made)
	return nil
}
