// Package image puts the cluster's container images together without a
// registry: the driver's from the Dockerfile, the others from single programs.
package image

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// File is one entry of a layer: the content of the file From, or a symbolic
// link to Link.
type File struct {
	To   string // absolute
	From string
	Link string
}

// dirs are in every image, for what the container runtime mounts there.
var dirs = []string{"dev", "etc", "proc", "sys", "tmp"}

// Layer makes an uncompressed layer: it is read once, on this machine.
func Layer(files ...File) (v1.Layer, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	made := map[string]bool{".": true}
	for _, f := range files {
		name := strings.TrimPrefix(f.To, "/")
		if err := parents(w, made, path.Dir(name)); err != nil {
			return nil, err
		}
		if err := f.write(w, name); err != nil {
			return nil, fmt.Errorf("layer: %w", err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return static.NewLayer(b.Bytes(), types.DockerUncompressedLayer), nil
}

func parents(w *tar.Writer, made map[string]bool, dir string) error {
	if made[dir] {
		return nil
	}
	if err := parents(w, made, path.Dir(dir)); err != nil {
		return err
	}
	made[dir] = true
	mode := int64(0o755)
	if dir == "tmp" {
		mode = 0o1777
	}
	return w.WriteHeader(&tar.Header{Name: dir + "/", Mode: mode, Typeflag: tar.TypeDir})
}

func (f File) write(w *tar.Writer, name string) error {
	if f.Link != "" {
		return w.WriteHeader(&tar.Header{Name: name, Linkname: f.Link, Mode: 0o777, Typeflag: tar.TypeSymlink})
	}
	in, err := os.Open(f.From)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	mode := int64(info.Mode().Perm() | 0o444)
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: info.Size(), Typeflag: tar.TypeReg}); err != nil {
		return err
	}
	_, err = io.Copy(w, in)
	return err
}

// Program is the image of one static program, with links to it.
func Program(binary, entrypoint string, links ...File) (v1.Image, error) {
	files := append([]File{{To: entrypoint, From: binary}}, links...)
	for _, d := range dirs {
		files = append(files, File{To: "/" + d + "/.keep", From: os.DevNull})
	}
	layer, err := Layer(files...)
	if err != nil {
		return nil, err
	}
	return build(v1.Config{Entrypoint: []string{entrypoint}, Env: []string{"PATH=/bin"}}, layer)
}

// FromRecipe is the image of a Dockerfile: base is the file that Base made of
// the same recipe, built and source are where COPY finds its files.
func FromRecipe(r *Recipe, base, built, source string) (v1.Image, error) {
	content, err := os.ReadFile(base)
	if err != nil {
		return nil, err
	}
	files := make([]File, 0, len(r.Copies))
	for _, c := range r.Copies {
		from := filepath.Join(source, c.From)
		if c.Built {
			from = filepath.Join(built, path.Base(c.From))
		}
		files = append(files, File{To: c.To, From: from})
	}
	layer, err := Layer(files...)
	if err != nil {
		return nil, err
	}
	config := v1.Config{
		Entrypoint: r.Entrypoint, User: r.User, Labels: r.Labels,
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
	}
	return build(config, static.NewLayer(content, types.DockerUncompressedLayer), layer)
}

func build(config v1.Config, layers ...v1.Layer) (v1.Image, error) {
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		return nil, err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Config = "linux", runtime.GOARCH, config
	return mutate.ConfigFile(img, file)
}

// Write makes one archive of all images, as `ctr images import` takes it.
func Write(file string, images map[string]v1.Image) error {
	tagged := make(map[name.Tag]v1.Image, len(images))
	for ref, img := range images {
		tag, err := name.NewTag(ref)
		if err != nil {
			return err
		}
		tagged[tag] = img
	}
	return tarball.MultiWriteToFile(file, tagged)
}
