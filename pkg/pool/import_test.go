package pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
)

// importScenario is an import as the crash, fault and power-cut tests see it.
var importScenario = scenario{
	name: "import",
	prepare: func(_ context.Context, s *Set) (string, error) {
		return "", makeSource(sourceIn(s), vhdx.CreateOptions{Size: 8 << 20, BlockSize: 1 << 20})
	},
	run: func(ctx context.Context, s *Set, _ string) error {
		_, err := s.Import(ctx, Import{File: sourceIn(s), Name: "victim", FSType: "xfs"})
		if v, ok := victim(ctx, s); ok && errors.Is(err, fs.ErrNotExist) && v.FSType == "" {
			return nil // the old name is gone, so it was done
		}
		return err
	},
	interrupted: func(ctx context.Context, s *Set, _ string) error {
		if v, ok := victim(ctx, s); ok {
			return holdsText(v.Image)
		}
		return holdsText(sourceIn(s))
	},
	done: func(ctx context.Context, s *Set, _ string) error {
		v, ok := victim(ctx, s)
		if !ok || v.Use != UseMounted || v.Size != 8<<20 || v.Params.FSType != "xfs" {
			return fmt.Errorf("the volume is %+v", v)
		}
		if _, err := os.Lstat(sourceIn(s)); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("the file still has its old name: %w", err)
		}
		return holdsText(v.Image)
	},
}

const sourceText = "what must not be lost"

// sourceIn is a name that a pool leaves alone.
func sourceIn(s *Set) string { return filepath.Join(s.Pools()[0].tree.Name(), ".nfs-disk.vhdx") }

func makeSource(file string, o vhdx.CreateOptions) error {
	if _, err := vhdx.Create(file, o); err != nil {
		return err
	}
	im, err := vhdx.OpenPath(file, vhdx.OpenOptions{})
	if err != nil {
		return err
	}
	_, err = im.WriteAt(bytes.Repeat([]byte(sourceText), 512)[:4096], 3<<20)
	return errors.Join(err, im.Close())
}

func holdsText(file string) error {
	im, err := vhdx.OpenPath(file, vhdx.OpenOptions{ReadOnly: true})
	if err != nil {
		return err
	}
	defer im.Close()
	b := make([]byte, len(sourceText))
	if _, err := im.ReadAt(b, 3<<20); err != nil || string(b) != sourceText {
		return fmt.Errorf("%s holds %q, %w", file, b, err)
	}
	return nil
}

func victim(ctx context.Context, s *Set) (Volume, bool) {
	vols, _, err := s.List(ctx, "", 0)
	if err != nil || len(vols) != 1 {
		return Volume{}, false
	}
	return vols[0], vols[0].Name == "victim"
}

func TestImportRefuses(t *testing.T) {
	s, p := newSet(t)
	ctx := t.Context()
	dir := p.tree.Name()
	file := func(name string) string { return filepath.Join(dir, ".nfs-"+name) }
	source := func(name string) string {
		if err := makeSource(file(name), vhdx.CreateOptions{Size: 8 << 20}); err != nil {
			t.Fatal(err)
		}
		return file(name)
	}
	write := func(name, content string) string {
		if err := os.WriteFile(file(name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return file(name)
	}
	create(t, s, "taken")

	damaged := source("damaged")
	f, err := os.OpenFile(damaged, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{64 << 10, 128 << 10} { // both headers
		if _, err := f.WriteAt(make([]byte, 4096), at); err != nil {
			t.Fatal(err)
		}
	}
	f.Close()

	open := source("open")
	im, err := vhdx.OpenPath(open, vhdx.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()

	if err := os.Symlink("/dev", file("link")); err != nil {
		t.Fatal(err)
	}

	elsewhere := filepath.Join(t.TempDir(), "disk.vhdx")
	if err := makeSource(elsewhere, vhdx.CreateOptions{Size: 8 << 20}); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		what, file, name, pool string
		want                   error
		text                   string
	}{
		{"no file", file("none"), "v", "", fs.ErrNotExist, "none"},
		{"directory", dir, "v", "", ErrInvalid, "directory"},
		{"symlink to a directory", file("link"), "v", "", ErrInvalid, "directory"},
		{"device", "/dev/null", "v", "", ErrInvalid, "device"},
		{"no VHDX", write("raw", strings.Repeat("raw", 1<<20)), "v", "", vhdx.ErrNotVHDX, ""},
		{"empty", write("empty", ""), "v", "", vhdx.ErrNotVHDX, ""},
		{"damaged", damaged, "v", "", ErrInvalid, "vhdxctl check"},
		{"in use", open, "v", "", ErrInUse, ""},
		{"another filesystem", elsewhere, "v", "", ErrInvalid, "vhdxctl convert"},
		{"no name", source("a"), "", "", ErrInvalid, "name"},
		{"long name", file("a"), strings.Repeat("n", MaxName+1), "", ErrInvalid, "name"},
		{"name that is taken", file("a"), "taken", "", ErrConflict, ""},
		{"pool that is not there", file("a"), "v", "other", ErrNoPool, ""},
	} {
		v, err := s.Import(ctx, Import{File: tc.file, Name: tc.name, Pool: tc.pool})
		if !errors.Is(err, tc.want) || !strings.Contains(fmt.Sprint(err), tc.text) {
			t.Errorf("%s: %+v, %v", tc.what, v, err)
		}
	}
	if _, err := os.Stat(elsewhere); err != nil {
		t.Errorf("a refused file is gone: %v", err)
	}
	audit(t, p)
	if left := files(t, p); len(left) != 2 { // of the volume that was there before
		t.Errorf("left: %v", left)
	}
}

// An imported volume lives as any other, and dies as any other.
func TestImportLife(t *testing.T) {
	s, p := newSet(t)
	ctx := t.Context()
	if err := makeSource(sourceIn(s), vhdx.CreateOptions{Size: 5<<20 + 512, Fixed: true, BlockSize: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(sourceIn(s), 0o400); err != nil {
		t.Fatal(err)
	}
	v, err := s.Import(ctx, Import{File: sourceIn(s), Name: "hyper-v"})
	if err != nil {
		t.Fatal(err)
	}
	audit(t, p)
	if v.Use != UseMounted || v.Size != 5<<20+512 || !v.Params.Fixed {
		t.Fatalf("%+v", v)
	}
	if fi, err := os.Stat(v.Image); err != nil || fi.Mode().Perm() != 0o660 {
		t.Fatalf("%v, %v", fi.Mode(), err)
	}
	if v, err = s.Resize(ctx, v.ID, 9<<20); err != nil || v.Size != 9<<20 {
		t.Fatal(v, err)
	}
	if err := holdsText(v.Image); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteVolume(ctx, v.ID); err != nil {
		t.Fatal(err)
	}
	audit(t, p)
	if left := files(t, p); len(left) != 0 {
		t.Fatalf("left: %v", left)
	}
}

// What is a volume's image already cannot become another's, nor lose its only
// name, whichever way it is named.
func TestImportOfAnImage(t *testing.T) {
	s, p := newSet(t)
	ctx := t.Context()
	if err := makeSource(sourceIn(s), vhdx.CreateOptions{Size: 8 << 20}); err != nil {
		t.Fatal(err)
	}
	v, err := s.Import(ctx, Import{File: sourceIn(s), Name: "data"})
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link.vhdx")
	if err := os.Symlink(v.Image, link); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{v.Image, link, filepath.Join(filepath.Dir(v.Image), "..", filepath.Base(filepath.Dir(v.Image)), filepath.Base(v.Image))} {
		for _, name := range []string{"data", "other"} {
			_, err := s.Import(ctx, Import{File: file, Name: name})
			wantErr(t, file+" as "+name, err, ErrInvalid, "among the images")
		}
	}
	second := filepath.Join(p.tree.Name(), ".nfs-second")
	if err := os.Link(v.Image, second); err != nil {
		t.Fatal(err)
	}
	_, err = s.Import(ctx, Import{File: second, Name: "other"})
	wantErr(t, "hard link", err, ErrInvalid, "other names")
	if _, err := s.Import(ctx, Import{File: second, Name: "data"}); err != nil { // as after an interruption
		t.Fatal(err)
	}
	if _, err := os.Lstat(second); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the old name is still there: %v", err)
	}
	if err := holdsText(v.Image); err != nil {
		t.Fatal(err)
	}
	audit(t, p)
}

// A refused import leaves owner and mode of the file as they are.
func TestRefusedImportChangesNothing(t *testing.T) {
	s, _ := newSet(t)
	create(t, s, "taken")
	if err := makeSource(sourceIn(s), vhdx.CreateOptions{Size: 8 << 20}); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(sourceIn(s), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := s.Import(t.Context(), Import{File: sourceIn(s), Name: "taken"})
	wantErr(t, "import", err, ErrConflict)
	if fi, err := os.Stat(sourceIn(s)); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
}

// A file that has been moved or imported before its lock was taken.
func TestImportLooksAgain(t *testing.T) {
	file := filepath.Join(t.TempDir(), "disk.vhdx")
	if err := makeSource(file, vhdx.CreateOptions{Size: 8 << 20}); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := stillNamed(file, f); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file, file+".moved"); err != nil {
		t.Fatal(err)
	}
	if err := stillNamed(file, f); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("moved: %v", err)
	}
	if err := makeSource(file, vhdx.CreateOptions{Size: 8 << 20}); err != nil {
		t.Fatal(err)
	}
	if err := stillNamed(file, f); !errors.Is(err, ErrBusy) {
		t.Errorf("replaced: %v", err)
	}
}
