package vhdx_test

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx"
	"github.com/csi-vhdx/csi-driver-vhdx/pkg/vhdx/vhdxtest"
)

func TestCreateOptionsCompleted(t *testing.T) {
	tests := []struct {
		name     string
		o        vhdx.CreateOptions
		size     int64
		block    int64
		log      int64
		adjusted []string // beginnings
	}{
		{"defaults up to 1 GiB", vhdx.CreateOptions{Size: gib}, gib, 8 * mib, mib, nil},
		{"defaults up to 100 GiB", vhdx.CreateOptions{Size: gib + 512}, gib + 512, 16 * mib, mib, nil},
		{"defaults up to 32 TiB", vhdx.CreateOptions{Size: 100*gib + 512}, 100*gib + 512, 32 * mib, mib, nil},
		{"defaults at 32 TiB", vhdx.CreateOptions{Size: 32 * tib}, 32 * tib, 32 * mib, mib, nil},
		{"defaults above 32 TiB", vhdx.CreateOptions{Size: 64 * tib}, 64 * tib, 64 * mib, mib, nil},
		{"size rounded up", vhdx.CreateOptions{Size: 1000}, 1024, 8 * mib, mib, []string{"size 1000 rounded up to 1024"}},
		{"size rounded up, 4 KiB sectors", vhdx.CreateOptions{Size: 4097, LogicalSectorSize: 4096}, 8192, 8 * mib, mib, []string{"size 4097 rounded up to 8192"}},
		{"block size rounded up", vhdx.CreateOptions{Size: gib, BlockSize: 3 * mib}, gib, 4 * mib, mib, []string{"block size 3145728 rounded up to 4194304"}},
		{"smallest block size", vhdx.CreateOptions{Size: gib, BlockSize: 1}, gib, mib, mib, []string{"block size 1 rounded up to 1048576"}},
		{"log size rounded up", vhdx.CreateOptions{Size: gib, LogSize: mib + 1}, gib, 8 * mib, 2 * mib, []string{"log size 1048577 rounded up to 2097152"}},
		{"everything off", vhdx.CreateOptions{Size: 1, BlockSize: mib + 1, LogSize: 1}, 512, 2 * mib, mib, []string{"size 1 ", "block size 1048577 ", "log size 1 "}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			made, err := vhdx.CreateOn(vhdxtest.NewFile("x"), tt.o)
			if err != nil {
				t.Fatal(err)
			}
			o := made.Options
			if o.Size != tt.size || o.BlockSize != tt.block || o.LogSize != tt.log || o.PhysicalSectorSize != 4096 || o.Creator == "" {
				t.Fatalf("completed to %+v", o)
			}
			if len(made.Adjusted) != len(tt.adjusted) {
				t.Fatalf("adjusted %q", made.Adjusted)
			}
			for i, begin := range tt.adjusted {
				if !strings.HasPrefix(made.Adjusted[i], begin) {
					t.Fatalf("adjusted %q, want %q", made.Adjusted[i], begin)
				}
			}
		})
	}
}

func TestCreateRefusesImpossibleOptions(t *testing.T) {
	tests := []struct {
		o      vhdx.CreateOptions
		option string // named with its value
	}{
		{vhdx.CreateOptions{}, "size 0"},
		{vhdx.CreateOptions{Size: -1}, "size -1"},
		{vhdx.CreateOptions{Size: 64*tib + 1}, "size 70368744177665"},
		{vhdx.CreateOptions{Size: gib, BlockSize: -1}, "block size -1"},
		{vhdx.CreateOptions{Size: gib, BlockSize: 256*mib + 1}, "block size 268435457"},
		{vhdx.CreateOptions{Size: gib, LogSize: -1}, "log size -1"},
		{vhdx.CreateOptions{Size: gib, LogSize: gib + 1}, "log size 1073741825"},
		{vhdx.CreateOptions{Size: gib, LogicalSectorSize: 1024}, "logical sector size 1024"},
		{vhdx.CreateOptions{Size: gib, PhysicalSectorSize: 520}, "physical sector size 520"},
		{vhdx.CreateOptions{Size: gib, LogicalSectorSize: 4096, PhysicalSectorSize: 512}, "physical sector size 512"},
		{vhdx.CreateOptions{Size: gib, Creator: strings.Repeat("x", 256)}, "creator of 256"},
	}
	for _, tt := range tests {
		t.Run(tt.option, func(t *testing.T) {
			f := vhdxtest.NewFile("the.vhdx")
			_, err := vhdx.CreateOn(f, tt.o)
			if !errors.Is(err, vhdx.ErrInvalid) || !strings.Contains(err.Error(), tt.option) || !strings.Contains(err.Error(), "the.vhdx") {
				t.Fatalf("error %v", err)
			}
			if size, _ := f.Size(); size != 0 {
				t.Fatal("the file was written")
			}
			dir := t.TempDir()
			if _, err := vhdx.Create(filepath.Join(dir, "x"), tt.o); !errors.Is(err, vhdx.ErrInvalid) {
				t.Fatalf("by path: %v", err)
			}
			wantEmptyDir(t, dir)
		})
	}
	f := vhdxtest.NewFile("x")
	if err := f.Truncate(1); err != nil {
		t.Fatal(err)
	}
	if _, err := vhdx.CreateOn(f, vhdx.CreateOptions{Size: gib}); !errors.Is(err, vhdx.ErrInvalid) {
		t.Fatalf("a file that is not empty: %v", err)
	}
}

// plainFile hides what else a File can do.
type plainFile struct{ vhdx.File }

func TestCreateLayout(t *testing.T) {
	tests := []struct {
		name  string
		o     vhdx.CreateOptions
		plain bool
	}{
		{"dynamic", vhdx.CreateOptions{Size: 10 * gib}, false},
		{"dynamic with a big log and a big BAT", vhdx.CreateOptions{Size: tib, BlockSize: mib, LogSize: 5 * mib}, false},
		{"4 KiB sectors", vhdx.CreateOptions{Size: 100 * gib, LogicalSectorSize: 4096, BlockSize: 256 * mib}, false},
		{"fixed", vhdx.CreateOptions{Size: 50*mib + 512, Fixed: true, BlockSize: mib}, false},
		{"fixed, written", vhdx.CreateOptions{Size: 50*mib + 512, Fixed: true, BlockSize: mib}, true},
		{"fixed, one block", vhdx.CreateOptions{Size: 512, Fixed: true, BlockSize: 32 * mib}, true},
		{"fixed, a BAT of several chunks", vhdx.CreateOptions{Size: 520*gib + 4096, Fixed: true, BlockSize: mib}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := vhdxtest.NewFile("x")
			var told []int64
			tt.o.Progress = func(done, total int64) error {
				if n := len(told); done > total || n > 0 && done <= told[n-1] {
					t.Fatalf("progress: %d of %d after %v", done, total, told)
				}
				told = append(told, done)
				return nil
			}
			var medium vhdx.File = f
			if tt.plain {
				medium = plainFile{f}
			}
			made, err := vhdx.CreateOn(medium, tt.o)
			if err != nil {
				t.Fatal(err)
			}
			o := made.Options
			l, err := vhdxtest.ReadLayout(f)
			if err != nil {
				t.Fatal(err)
			}
			blocks := (o.Size + o.BlockSize - 1) / o.BlockSize
			batLength := (blocks + (blocks-1)/(8*mib*int64(o.LogicalSectorSize)/o.BlockSize)) * 8
			batLength = (batLength + mib - 1) / mib * mib
			payload := 2*mib + o.LogSize + batLength
			want := vhdxtest.Layout{
				Header:      l.Header,
				FileSize:    payload,
				Metadata:    vhdxtest.Extent{Off: mib + o.LogSize, N: mib},
				BAT:         vhdxtest.Extent{Off: 2*mib + o.LogSize, N: batLength},
				VirtualSize: o.Size, BlockSize: o.BlockSize, SectorSize: int64(o.LogicalSectorSize),
				Fixed:  o.Fixed,
				Blocks: map[int64]int64{},
			}
			if o.Fixed {
				want.FileSize += blocks * o.BlockSize
				for i := range blocks {
					want.Blocks[i] = payload + i*o.BlockSize
				}
				if len(told) == 0 || told[len(told)-1] != blocks*o.BlockSize {
					t.Fatalf("progress ended with %v", told)
				}
			}
			if l.Header.LogOffset != mib || l.Header.LogLength != o.LogSize || l.Header.Sequence != 2 {
				t.Fatalf("header %+v", l.Header)
			}
			if !maps.Equal(l.Blocks, want.Blocks) {
				t.Fatalf("%d blocks, want %d from %#x on", len(l.Blocks), blocks, payload)
			}
			if diff := cmp.Diff(want, *l, cmpopts.IgnoreFields(vhdxtest.Layout{}, "Blocks"), cmpopts.EquateEmpty()); diff != "" {
				t.Fatal(diff)
			}
		})
	}
}

// At whatever step the power is cut, what is there does not open, or it is the
// whole image.
func TestCreateCut(t *testing.T) {
	for _, o := range []vhdx.CreateOptions{
		{Size: 64 * mib, BlockSize: 8 * mib},
		{Size: 64 * mib, BlockSize: 8 * mib, Fixed: true},
	} {
		f := vhdxtest.NewFile("x")
		opened, refused := 0, 0
		f.OnStep(func(s *vhdxtest.Snapshot) {
			for i := range 40 {
				p := s.Plan(1, i)
				medium := s.Image(p)
				im, err := vhdx.Open(medium.Clone(), vhdx.OpenOptions{ReadOnly: true})
				if err != nil {
					refused++
					continue
				}
				opened++
				info := im.Info()
				if err := im.Close(); err != nil {
					t.Fatal(err)
				}
				if info.VirtualSize != o.Size || info.Fixed != o.Fixed || info.BlockSize != o.BlockSize || o.Fixed != (info.AllocatedBlocks == 8) {
					t.Fatalf("step %d, %s: opened as %+v", s.Step(), p.Name, info)
				}
			}
		})
		if _, err := vhdx.CreateOn(f, o); err != nil {
			t.Fatal(err)
		}
		f.OnStep(nil)
		if opened == 0 || refused == 0 {
			t.Fatalf("%d states opened, %d refused", opened, refused)
		}
	}
}

func TestCreateFailsAtEveryStep(t *testing.T) {
	o := vhdx.CreateOptions{Size: 16 * mib, BlockSize: 8 * mib, Fixed: true}
	f := vhdxtest.NewFile("x")
	if _, err := vhdx.CreateOn(f, o); err != nil {
		t.Fatal(err)
	}
	for step := range f.Step() {
		f := vhdxtest.NewFile("x")
		f.DieAt(step + 1)
		if _, err := vhdx.CreateOn(f, o); !errors.Is(err, vhdxtest.ErrDied) {
			t.Fatalf("dead from step %d on: %v", step+1, err)
		}
	}
	full := vhdxtest.NewFile("x")
	full.Inject(vhdxtest.Fault{Kind: vhdxtest.Allocate, N: 1, Err: syscall.ENOSPC})
	if _, err := vhdx.CreateOn(full, o); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("no space: %v", err)
	}
}

// An error of Progress ends the creation, and nothing is left.
func TestCreateStopped(t *testing.T) {
	dir, stop := t.TempDir(), errors.New("stop")
	_, err := vhdx.Create(filepath.Join(dir, "x"), vhdx.CreateOptions{
		Size: 2 * gib, Fixed: true,
		Progress: func(int64, int64) error { return stop },
	})
	if !errors.Is(err, stop) {
		t.Fatalf("error %v", err)
	}
	wantEmptyDir(t, dir)
}

func TestCreatePath(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "disk.vhdx")
	if _, err := vhdx.Create(path, vhdx.CreateOptions{Size: 40 * mib, Fixed: true}); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode() != 0o600 {
		t.Fatalf("mode %v", st.Mode())
	}
	if allocated := st.Sys().(*syscall.Stat_t).Blocks * 512; allocated < st.Size()-mib || st.Size() < 44*mib {
		t.Fatalf("%d of %d bytes have their space", allocated, st.Size())
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := vhdx.Create(path, vhdx.CreateOptions{Size: mib}); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("onto an existing file: %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Fatalf("the existing file was changed: %v", err)
	}
	if err := os.Symlink("nowhere", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if _, err := vhdx.Create(filepath.Join(dir, "link"), vhdx.CreateOptions{Size: mib}); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("onto a dangling link: %v", err)
	}
	if _, err := vhdx.Create(filepath.Join(dir, "no", "disk"), vhdx.CreateOptions{Size: mib}); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("into a missing directory: %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Fatalf("left behind: %v, %v", entries, err)
	}
}

// Of two at once one wins, and what it wrote stays.
func TestCreatePathRace(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "disk.vhdx")
	sizes := []int64{mib, 2 * mib, 3 * mib, 4 * mib}
	errs := make([]error, len(sizes))
	var wg sync.WaitGroup
	for i, size := range sizes {
		wg.Go(func() { _, errs[i] = vhdx.Create(path, vhdx.CreateOptions{Size: size}) })
	}
	wg.Wait()
	winner := -1
	for i, err := range errs {
		switch {
		case err == nil && winner < 0:
			winner = i
		case !errors.Is(err, fs.ErrExist):
			t.Fatalf("errors %v", errs)
		}
	}
	if winner < 0 {
		t.Fatalf("nobody won: %v", errs)
	}
	im, err := vhdx.OpenPath(path, vhdx.OpenOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	if im.Size() != sizes[winner] {
		t.Fatalf("size %d, want %d", im.Size(), sizes[winner])
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Fatalf("left behind: %v, %v", entries, err)
	}
}

func TestCreatePathFullFilesystem(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount a small filesystem")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=16m"); err != nil {
		t.Skipf("mount tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	path := filepath.Join(dir, "disk.vhdx")
	_, err := vhdx.Create(path, vhdx.CreateOptions{Size: 64 * mib, Fixed: true})
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), dir) {
		t.Fatalf("error %v", err)
	}
	wantEmptyDir(t, dir)
}

func wantEmptyDir(t *testing.T, dir string) {
	t.Helper()
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Fatalf("left behind: %v, %v", entries, err)
	}
}
