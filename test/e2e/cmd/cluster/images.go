package main

import (
	"bufio"
	"bytes"
	"context"
	"debug/buildinfo"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/csi-vhdx/csi-driver-vhdx/test/e2e/internal/image"
)

const (
	driverImage  = "e2e.local/vhdx-csi"
	sidecarImage = "registry.k8s.io/sig-storage/"
	// The name that the samples and the documents use.
	busyboxImage = "registry.k8s.io/e2e-test-images/busybox:1.37.0-1"
)

// prepare renders the manifests and makes the images that they name.
func prepare(ctx context.Context, o options) error {
	rendered, err := renderDriver(ctx, o)
	if err != nil {
		return err
	}
	images := map[string]v1.Image{}
	for _, ref := range refs(rendered) {
		if images[ref], err = sidecar(o, ref); err != nil {
			return err
		}
	}
	if images[driverImage+":"+tag(o.Version)], err = driver(ctx, o); err != nil {
		return err
	}
	if images["e2e.local/pause:1"], err = image.Program(filepath.Join(o.Bin, "pause"), "/pause"); err != nil {
		return err
	}
	if images["e2e.local/workload:1"], err = image.Program(filepath.Join(o.Bin, "workload"), "/workload"); err != nil {
		return err
	}
	if images[busyboxImage], err = busybox(ctx); err != nil {
		return err
	}
	return image.Write(filepath.Join(o.Bin, imagesFile), images)
}

// renderDriver writes the manifests with the tests' image in place of the driver's.
func renderDriver(ctx context.Context, o options) ([]byte, error) {
	dir := filepath.Join(o.Scratch, "install")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	overlay, err := filepath.Rel(dir, o.Overlay) // kustomize takes no absolute path
	if err != nil {
		return nil, err
	}
	component, err := filepath.Rel(dir, filepath.Join(o.Repo, "deploy/kubernetes/components/snapshot-metadata"))
	if err != nil {
		return nil, err
	}
	if err := certify(ctx, dir); err != nil {
		return nil, err
	}
	if err := render("kustomization.yaml", filepath.Join(dir, "kustomization.yaml"), map[string]any{
		"Overlay": overlay, "Metadata": component, "ImageName": driverImage, "ImageTag": tag(o.Version), "SysResource": hasSysResource(),
	}); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(o.Bin, "kubectl"), "kustomize", dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("kubectl kustomize %s: %w", o.Overlay, err)
	}
	return out, os.WriteFile(filepath.Join(o.Scratch, driverFile), out, 0o600)
}

// tag makes a version fit for an image's tag.
func tag(version string) string { return strings.ReplaceAll(version, "+", "-") }

var imageLine = regexp.MustCompile(`(?m)^\s*(?:- )?image: (\S+)$`)

// refs lists the sidecars' images.
func refs(rendered []byte) []string {
	var found []string
	for _, m := range imageLine.FindAllSubmatch(rendered, -1) {
		if ref := string(m[1]); strings.HasPrefix(ref, sidecarImage) && !slices.Contains(found, ref) {
			found = append(found, ref)
		}
	}
	return found
}

// sidecar makes the image of the program that a public image's name stands for.
// A real sidecar must be of the version that the manifests name: go.mod of this
// module decides what is built.
func sidecar(o options, ref string) (v1.Image, error) {
	name, version, _ := strings.Cut(strings.TrimPrefix(ref, sidecarImage), ":")
	program := filepath.Join(o.Bin, name)
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return nil, fmt.Errorf("the manifests name %s: %w", ref, err)
	}
	if built := info.Main; !strings.HasSuffix(built.Path, "/test/e2e") && built.Version != version {
		return nil, fmt.Errorf("the manifests name %s, and test/e2e/go.mod has %s: make them the same", ref, built.Version)
	}
	return image.Program(program, "/"+name)
}

func driver(ctx context.Context, o options) (v1.Image, error) {
	recipe, err := image.ReadDockerfile(filepath.Join(o.Repo, "Dockerfile"), map[string]string{"VERSION": o.Version})
	if err != nil {
		return nil, err
	}
	scratch, err := treeDir(o.Scratch)
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(scratch) }()
	base, err := image.Base(ctx, recipe, o.Bin, scratch)
	if err != nil {
		return nil, err
	}
	return image.FromRecipe(recipe, base, o.Plugin, o.Repo)
}

// treeSize is more than the base image takes while it is made.
const treeSize = 1 << 30

// treeDir makes a directory for the thousands of small files of a base image: in
// memory, where there is room for them; a container has 64 MiB there.
func treeDir(scratch string) (string, error) {
	var st unix.Statfs_t
	if err := unix.Statfs("/dev/shm", &st); err == nil && st.Bavail*uint64(st.Bsize) >= treeSize {
		return os.MkdirTemp("/dev/shm", filepath.Base(scratch)+"-")
	}
	return os.MkdirTemp(scratch, "tree-")
}

// busybox is Debian's static one, with all of its commands.
func busybox(ctx context.Context) (v1.Image, error) {
	out, err := exec.CommandContext(ctx, "/bin/busybox", "--list").Output()
	if err != nil {
		return nil, err
	}
	var links []image.File
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		if s.Text() != "busybox" {
			links = append(links, image.File{To: "/bin/" + s.Text(), Link: "busybox"})
		}
	}
	return image.Program("/bin/busybox", "/bin/busybox", links...)
}
